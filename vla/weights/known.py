"""Published checkpoints by short name: `known.yaml`, which travels inside the package."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from vla.plain_yaml import load_yaml

TABLE_FILE = "known.yaml"


@dataclass(frozen=True, kw_only=True)
class KnownCheckpoint:
    """What is known about a published checkpoint without opening it; None where unknown.

    Attributes:
        name: Short name, as `vla info NAME` and `from_pretrained(NAME)` take it.
        id: Hub id, or the address of a bucket's folder (`gs://...`).
        format: "lerobot", "openpi", "openpi-jax", "paligemma" or "transformers", as in `vla info`.
        policy: Folder in `vla.policies`; None where this version has no such policy.
        parameters: Numbers in the files, unused ones included.
        bytes: Size of the weights.
        dtype: What the numbers are stored as.
        license: Identifier as on the hub.
        sha256: Checksum of the weights, where they are one file.
        gated: Whether terms must be accepted before it can be downloaded.
        notes: Remarks.
        provenance: Address of the page that states all this.
    """

    name: str
    id: str
    format: str
    policy: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    dtype: str | None = None
    license: str | None = None
    sha256: str | None = None
    gated: bool | None = None
    notes: str = ""
    provenance: str


@cache
def known_checkpoints() -> dict[str, KnownCheckpoint]:
    """Return the table, by short name, in the order of the file."""
    text = files("vla.weights").joinpath(TABLE_FILE).read_text(encoding="utf-8")
    return {name: KnownCheckpoint(name=name, **values) for name, values in load_yaml(text).items()}


def known_by_id(repo_id: str) -> KnownCheckpoint | None:
    """Return what is known about a hub id, if anything."""
    return next((one for one in known_checkpoints().values() if one.id == repo_id), None)
