"""One file, well formed, nothing outside it, everything escaped."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vla.errors import ConfigError
from vla.eval.outcome import Summary
from vla.eval.report import (
    Card,
    FigureBlock,
    Report,
    SuccessBlock,
    SuccessRow,
    TableBlock,
    TextBlock,
    VideoBlock,
    describe_machine,
    format_percent,
    render_report,
    write_report,
)
from vla.eval.video import encode_video

VOID = {"meta", "img", "rect", "br"}
EVIL = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def png(level=7):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def figure():
    made = Figure(figsize=(2, 1))
    made.subplots().plot([0, 1], [0, 1])
    return made


def full_report():
    summary, unstated = Summary(100, 99, 24.0), Summary(40, 0, float("nan"))
    film = encode_video(np.zeros((2, 16, 16, 3), np.uint8))
    return Report(
        "A title",
        "A lead",
        [Card("99 %", "flow", "100 layouts"), Card("0 %", "mean")],
        [
            SuccessBlock(
                "Success",
                [
                    SuccessRow("flow", "left", summary, {"drawers opened": "98 / 100"}),
                    SuccessRow("mean", "unstated", unstated, {"drawers opened": "none of 40"}),
                ],
                note="SUCCESS NOTE",
                condition_header="INSTRUCTION HEADER",
            ),
            TextBlock("Words", ["first paragraph", "second paragraph"]),
            FigureBlock("Bytes", png(), "a caption"),
            FigureBlock("Drawn", figure()),
            VideoBlock("Film", film, "moving"),
            TableBlock("Timing", ["stage", "seconds"], [["train", "12.5"]], "TABLE NOTE"),
        ],
    )


def test_the_page_is_whole_and_says_everything(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, full_report())
    page = Page(path.read_text())
    words = page.words()
    for text in (
        "A title",
        "A lead",
        "100 layouts",
        "99 / 100 = 99 %",
        "94.6 % to 99.8 %",
        "0 / 40 = 0 %",
        "0 % to 8.8 %",
        "drawers opened",
        "98 / 100",
        "none of 40",
        "INSTRUCTION HEADER",
        "SUCCESS NOTE",
        "second paragraph",
        "a caption",
        "moving",
        "TABLE NOTE",
        "12.5",
        describe_machine()["processor"],
        describe_machine()["torch"],
    ):
        assert text in words
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_pictures_and_films_are_inside():
    sources = [value for name, value in Page(render_report(full_report())).attributes if name == "src"]
    assert len(sources) == 3
    kinds = [source.partition(";base64,")[0] for source in sources]
    assert kinds == ["data:image/png", "data:image/png", "data:video/mp4"]
    first = base64.b64decode(sources[0].partition(",")[2])
    assert first == png()
    assert Image.open(io.BytesIO(base64.b64decode(sources[1].partition(",")[2]))).size > (100, 50)


def test_no_network_and_no_script():
    html = render_report(full_report())
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", html)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "srcset")]


def test_text_is_escaped_everywhere():
    summary = Summary(1, 1, 3.0)
    report = Report(
        EVIL,
        EVIL,
        [Card(EVIL, EVIL, EVIL)],
        [
            SuccessBlock(EVIL, [SuccessRow(EVIL, EVIL, summary, {EVIL: EVIL})], EVIL, EVIL),
            TextBlock(EVIL, [EVIL]),
            FigureBlock(EVIL, png(), EVIL),
            TableBlock(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], EVIL),
        ],
        machine={EVIL: EVIL},
        made=EVIL,
    )
    html = render_report(report)
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert page.words().count("alert('x')") == html.count("alert(") - 1  # one stands in the image's alt
    assert ("alt", EVIL) in page.attributes


def test_the_interval_is_drawn_to_scale():
    html = render_report(full_report())
    low, width = re.search(r'<rect x="([\d.]+)" y="2" width="([\d.]+)"', html).groups()
    expected = Summary(100, 99, 24.0).interval
    assert (float(low), float(width)) == pytest.approx(
        (100 * expected[0], 100 * (expected[1] - expected[0])), abs=0.01
    )


def test_an_empty_report_is_a_page_too():
    assert "Nothing yet" in Page(render_report(Report("Nothing yet"))).words()


def test_errors():
    with pytest.raises(ConfigError, match="'Broken' is not a PNG"):
        render_report(Report("t", blocks=[FigureBlock("Broken", b"GIF89a")]))
    with pytest.raises(ConfigError, match="'Timing' has 1 cells, but there are 2 columns"):
        TableBlock("Timing", ["a", "b"], [["x"]])
    one = Summary(1, 1, 3.0)
    with pytest.raises(ConfigError, match=r"'Success' have different columns: \['doors'\] and \[\]"):
        SuccessBlock("Success", [SuccessRow("p", "a", one, {"doors": "1"}), SuccessRow("p", "b", one)])


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (1.0, "100 %"), (0.625, "62.5 %"), (0.9951, "99.5 %")]
)
def test_percent(share, text):
    assert format_percent(share) == text
