"""What `vla bench serve` measures."""

from dataclasses import dataclass, field

from vla.errors import ConfigError


@dataclass(frozen=True)
class ServingOptions:
    """Options of a measurement of a server.

    Args:
        checkpoint: What is served by servers of its own; None with a `url`, or for a tiny pi-0 with three
            cameras.
        url: A server that runs already; it is compared with itself alone.
        token: Its token.
        clients: Connections at once.
        seconds: Duration of the load in all, for the server that batches.
        rounds: Slices of the load, between which the server that does not batch has its turn.
        max_batch: Most observations in one pass of the server that batches.
        calls: Calls of each kind for what a server adds.
        size: Height and width of the images, pixels.
        level: Level of sampling.
        device: Where the policy computes.
        threads: CPU threads of each process that computes; None: PyTorch's choice.

    Raises:
        ConfigError: A value is out of its range, or two exclude each other.
    """

    checkpoint: str | None = None
    url: str | None = None
    token: str | None = field(default=None, repr=False)
    clients: int = 32
    seconds: float = 60.0
    rounds: int = 4
    max_batch: int = 16
    calls: int = 100
    size: int = 224
    level: str | None = None
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("clients", "rounds", "max_batch", "calls", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"seconds must be above 0, got {self.seconds}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}.")
        if self.url is not None and self.checkpoint is not None:
            raise ConfigError(
                f"A server at {self.url} has its own checkpoint: leave out '{self.checkpoint}', or --url."
            )
        if self.url is None and self.token is not None:
            raise ConfigError("A token is for a server that runs already (--url).")
