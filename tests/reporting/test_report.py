"""The report: complete, self-contained, and deaf to markup in what it shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml

from orchestrator.reporting import report
from orchestrator.reporting.compare import compare
from orchestrator.reporting.front import front
from specs.experiment import Experiment


class Page(HTMLParser):
    """Collects elements, the text of the page, and what its script elements hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.held: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = str(dict(attrs).get("id", tag)) if tag in ("script", "style", "pre") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.held[self._inside] = self.held.get(self._inside, "") + data
        if self._inside not in ("script", "style", "data"):
            self.text += data


def page_of(lab: Any, experiment: Experiment | None = None, **options: Any) -> Page:
    comparison = compare(lab.plan, lab.store, **options)
    return Page(report.html(comparison, lab.plan, experiment or lab.experiment, lab.store))


def test_nothing_is_fetched(finished: Any) -> None:
    page = page_of(finished)
    fetching = ("src", "href", "data", "poster", "srcset", "action", "background")
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "video", "audio")
        assert not set(attributes).intersection(fetching), (tag, attributes)
    assert not re.search(r"@import|url\(", page.held["style"])
    # And the browser holds the page to it: no source but the file itself.
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http:" not in policy
    assert "https:" not in policy


def test_plotly_is_inlined_once(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    text = report.html(comparison, finished.plan, finished.experiment, finished.store)
    assert text.count("plotly.js v") == 1
    assert len(text) < 6_000_000
    assert text == report.html(comparison, finished.plan, finished.experiment, finished.store)


def test_every_combination_and_number_is_there(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    page = page_of(finished)
    data = json.loads(page.held["data"])
    assert {r["name"] for r in data["rows"]} == {c.name for c in finished.plan.combinations}
    for shown, r in zip(data["rows"], comparison.rows, strict=True):
        assert shown["values"] == {k: c.value for k, c in r.cells.items() if c.value is not None}
        assert shown["spreads"] == {k: c.std for k, c in r.cells.items() if c.std is not None}
        assert r.name in shown["hover"]
        assert all(str(key) in shown["hover"] for key in ("top-1 %", "MACs", "latency ms", "token_merging.kept"))
        assert r.name in page.text
    for axes, names in data["fronts"].items():
        assert names == sorted(front(comparison, *axes.split("|")))
    assert len(data["curves"]) == 21
    assert data["curves"][0]["values"]["val_top1"][-1][0] == 3
    assert "39 stages instead of the 54" in page.text
    assert "threads = 1" in page.text


def test_the_spec_in_the_report_is_the_experiment(finished: Any) -> None:
    spec = yaml.safe_load(page_of(finished).held["pre"])
    assert Experiment.model_validate_json(json.dumps(spec)) == finished.experiment


def test_markup_in_texts_stays_text(lab: Any) -> None:
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $data & <b>"
    experiment = lab.experiment.model_copy(update={"description": nasty})
    lab.finish(measured=lambda c: c.seed == 0)
    failed = lab.combination("r4", "soft", 1).measured_by
    page = page_of(lab, experiment, failures={failed: nasty})
    assert nasty in page.text.replace("\n", "")
    assert "img" not in {tag for tag, _ in page.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 3


def test_a_report_of_nothing(lab: Any) -> None:
    page = page_of(lab)
    data = json.loads(page.held["data"])
    assert (data["fronts"], data["curves"], data["cost"]) == ({}, [], None)
    assert "0 of 6" in page.text
    assert "next is `teacher`" in page.text


@pytest.mark.parametrize("name", ["page.html", "style.css", "report.js"])
def test_the_parts_of_the_page_name_no_server(name: str) -> None:
    text = (report._PAGE / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
