"""A report in one HTML file: tables, figures and videos inlined; no script, no network, no other files.

Build a `Report` out of blocks and give it to `write_report`. Everything that is text is escaped.
"""

import base64
import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from vla.atomic import atomic_write
from vla.errors import ConfigError
from vla.eval.outcome import Summary
from vla.machine import cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"
PACKAGES = ("vla", "torch", "transformers", "numpy")
PNG_SIGNATURE = b"\x89PNG"


@dataclass(frozen=True)
class Card:
    """A number at the top: its value as text, what it is, and a note below it."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class TextBlock:
    """Paragraphs under a heading (none where it is empty)."""

    kind: ClassVar[str] = "text"
    heading: str
    paragraphs: Sequence[str] = ()


@dataclass(frozen=True)
class FigureBlock:
    """An image: a matplotlib figure, or the bytes of a PNG file."""

    kind: ClassVar[str] = "figure"
    heading: str
    figure: "Figure | bytes"
    caption: str = ""

    @property
    def alt(self) -> str:
        """The text for readers without the image."""
        return self.caption or self.heading

    @property
    def data(self) -> str:
        """The PNG in base64.

        Raises:
            ConfigError: The bytes are not a PNG.
        """
        if isinstance(self.figure, bytes):
            png = self.figure
        else:
            from vla.eval.figures import to_png

            png = to_png(self.figure)
        if not png.startswith(PNG_SIGNATURE):
            raise ConfigError(f"The figure '{self.alt}' is not a PNG: it begins with {png[:8]!r}.")
        return base64.b64encode(png).decode()


@dataclass(frozen=True)
class VideoBlock:
    """A video: the bytes of an mp4 file, as `vla.eval.video.encode_video` makes them."""

    kind: ClassVar[str] = "video"
    heading: str
    video: bytes
    caption: str = ""

    @property
    def data(self) -> str:
        """The mp4 in base64."""
        return base64.b64encode(self.video).decode()


@dataclass(frozen=True)
class TableBlock:
    """A plain table; the first column names the row, the others hold numbers.

    Raises:
        ConfigError: A row with another number of cells than the header.
    """

    kind: ClassVar[str] = "table"
    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ConfigError(
                    f"A row of the table '{self.heading}' has {len(row)} cells, but there are "
                    f"{len(self.header)} columns: {list(row)}."
                )


@dataclass(frozen=True)
class SuccessRow:
    """How one policy did under one condition.

    Args:
        policy: Its name.
        condition: What was asked of it.
        summary: The counts.
        cells: What the environment adds, by column (`EnvironmentReport.detailed_columns`).
    """

    policy: str
    condition: str
    summary: Summary
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SuccessBlock:
    """Success rates with their intervals, and the environment's own columns.

    Raises:
        ConfigError: Rows with different columns.
    """

    kind: ClassVar[str] = "success"
    heading: str
    rows: Sequence[SuccessRow]
    note: str = ""
    condition_header: str = "condition"

    def __post_init__(self) -> None:
        for row in self.rows:
            if list(row.cells) != self.columns:
                raise ConfigError(
                    f"The rows of the table '{self.heading}' have different columns: {self.columns} and "
                    f"{list(row.cells)}."
                )

    @property
    def columns(self) -> list[str]:
        """Headers of the environment's own columns."""
        return list(self.rows[0].cells) if self.rows else []


Block = TextBlock | FigureBlock | VideoBlock | TableBlock | SuccessBlock


@dataclass(frozen=True)
class Report:
    """What `write_report` writes.

    Args:
        title: The page's title.
        lead: A sentence or two below it.
        cards: The numbers that matter most.
        blocks: Everything else, in reading order.
        machine: Name and value of whatever tells where the numbers come from.
        made: When, as text.
    """

    title: str
    lead: str = ""
    cards: Sequence[Card] = ()
    blocks: Sequence[Block] = ()
    machine: dict[str, str] = field(default_factory=lambda: describe_machine())
    made: str = field(
        default_factory=lambda: datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    )


def render_report(report: Report) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=PackageLoader("vla.eval", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    return environment.get_template(TEMPLATE).render(report=report)


def write_report(path: Path | str, report: Report) -> None:
    """Write the report as one HTML file, in one step; an existing file is replaced.

    Raises:
        ConfigError: A figure that is not a PNG.
        SaveError: The file could not be written.
    """
    atomic_write(path, render_report(report))


def format_percent(share: float) -> str:
    """Return a share in per cent: one decimal, none where it is a whole number."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def describe_machine() -> dict[str, str]:
    """Return the processor, the number of cores, and the versions that numbers depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        **versions,
        "Python": platform.python_version(),
        "processor": _processor(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Return the processor's name; Python's own answer is empty on Linux."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
