# SPDX-License-Identifier: Apache-2.0
"""The page stands alone, says the verdict first, and draws what was measured."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgereels.benchmarks.latency_page import page, write_page
from edgereels.benchmarks.latency_report import report_of

from .latency_traces import lines_of, recorded, with_run

LINES = lines_of([*[0.3] * 40, 2.3, *[0.3] * 40])


def page_of(lines: list[Any], **run: Any) -> str:
    found = recorded(lines, run=with_run(**run))
    return page(report_of(found), found)


@pytest.fixture(scope="module")
def whole() -> str:
    return page_of(LINES)


def test_the_verdict_comes_first(whole: str) -> None:
    body = whole[whole.index("<main>") :]
    assert body.index("Not live: 3 of 79 chunks late") < body.index("<svg")
    assert "too short" in body


def test_a_trace_of_before_builds_were_told_apart_says_so(whole: str) -> None:
    assert "edgereels 0.1.0, build not recorded" in whole


def test_nothing_is_fetched_and_nothing_runs(whole: str) -> None:
    assert not re.findall(r"<script|<link|<img|@import|url\(|src=|href=", whole)
    assert set(re.findall(r"https?://[^\"' ]+", whole)) == {"http://www.w3.org/2000/svg"}


def test_it_has_both_a_light_and_a_dark_face(whole: str) -> None:
    assert "prefers-color-scheme:dark" in whole
    assert set(re.findall(r"var\((--\w+)\)", whole)) <= set(re.findall(r"(--\w+):", whole))


def test_its_drawings_are_whole_and_named(whole: str) -> None:
    drawings = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", whole, re.DOTALL)]
    titles = [one.findtext("{http://www.w3.org/2000/svg}title") for one in drawings]
    assert titles == [
        "the chunk in the middle",
        "the slowest chunk",
        "lateness over time",
        "distribution of latency",
        "memory over time",
    ]
    for one in drawings:
        numbers = [
            float(n) for n in re.findall(r'(?:x|y|x1|x2|y1|y2|width)="([-\d.e]+)"', ElementTree.tostring(one).decode())
        ]
        assert all(-5 <= number <= 930 for number in numbers)


def test_every_class_that_is_drawn_has_a_style(whole: str) -> None:
    style = whole[: whole.index("</style>")]
    drawn = {name for found in re.findall(r'class="([\w ]+)"', whole[len(style) :]) for name in found.split()}
    assert {name for name in drawn if f".{name}" not in style} == set()


def test_names_from_a_trace_are_text_and_never_markup() -> None:
    hostile = page_of(LINES, environment={"machine": "<script>alert(1)</script>"}, settings={"</pre><b>": "&"})
    assert "<script" not in hostile
    assert "</pre><b>" not in hostile


class Tags(HTMLParser):
    """Counts tags that are opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "tr", "td", "th", "p", "li"):
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("p", "li"):
            assert self.opened.pop() == tag


def test_tags_are_closed_in_their_order(whole: str) -> None:
    tags = Tags()
    tags.feed(whole)
    assert tags.opened == []


def test_an_empty_run_has_a_page_too(tmp_path: Path) -> None:
    empty = recorded([])
    write_page(tmp_path / "report.html", report_of(empty), empty)
    assert "Nothing was measured" in (tmp_path / "report.html").read_text(encoding="utf-8")
