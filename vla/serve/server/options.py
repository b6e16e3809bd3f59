"""What a server is told: where it listens, who may come, and how much of everything."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from vla.errors import ConfigError

MEBI = 2**20


@dataclass(frozen=True)
class ServeOptions:
    """Options of a `PolicyServer`; every resource has a bound.

    Args:
        host: Address to listen at: one of this machine's, or "0.0.0.0" for all of them.
        port: Port; 0: any that is free.
        token: What clients must show; None: nothing.
        max_batch: Most observations in one pass.
        queue: Most requests that wait; more are refused.
        max_connections: Most clients at once; more are refused.
        max_message_mb: Largest message of a client, MiB.
        samples: Chunks drawn for each request that names no number; the best is answered.
        seed: Where the seeds of requests that bring none start from; None: anywhere.
        tls_cert: Certificate chain (PEM), for wss://.
        tls_key: Its private key (PEM); None: it is in the same file.
        ping_seconds: Time between two pings, and within which each must be answered.
        send_seconds: Within which a client must have read its reply.
        open_seconds: Within which a client must have shaken hands.
        drain_seconds: Within which, after SIGTERM, requests that had come are answered.

    Raises:
        ConfigError: A value is out of its range, or there is a key without a certificate.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    max_batch: int = 16
    queue: int = 128
    max_connections: int = 64
    max_message_mb: int = 32
    samples: int = 1
    seed: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ping_seconds: float = 20.0
    send_seconds: float = 10.0
    open_seconds: float = 10.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_connections", "max_message_mb", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("ping_seconds", "send_seconds", "open_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number of seconds above 0, got {getattr(self, name)}.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"A port lies in 0 to 65535, got {self.port}.")
        if self.token is not None and not self.token.strip():
            raise ConfigError("The token is empty; leave it out to serve without one.")
        if self.token is not None and not self.token.isprintable():
            raise ConfigError("The token holds a character that no header can carry, such as a line's end.")
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("A private key for TLS needs its certificate as well: --tls-cert FILE.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check_address(self) -> None:
        """Raise unless the address can be listened at.

        Raises:
            ConfigError: It is not this machine's, or taken, or not permitted.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
        except (OSError, UnicodeError) as error:  # a name that is none is an OSError as well
            raise self.unusable(error) from error

    def unusable(self, error: Exception) -> ConfigError:
        """Return what to say where the address cannot be listened at."""
        reason = getattr(error, "strerror", None) or str(error)
        return ConfigError(
            f"Cannot listen at {self.host}:{self.port}: {reason}. Choose another --port or --host, or end "
            "what listens there."
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return what TLS needs, or None without it.

        Raises:
            ConfigError: The certificate or the key cannot be read, or do not belong together.
        """
        if self.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        named = str(self.tls_cert) if self.tls_key is None else f"{self.tls_cert} with {self.tls_key}"
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_no_password)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            if "PEM lib" in reason:
                reason = "one of them is not in PEM form, which begins with -----BEGIN"
            raise ConfigError(f"TLS cannot use {named}: {reason}.") from error
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not")
