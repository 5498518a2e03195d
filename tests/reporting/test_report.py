"""The report: complete, self-contained, and deaf to markup in what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.reporting import report
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import (
    Cell,
    ClaimPart,
    ClaimResult,
    Comparison,
    Curve,
    CurvePoint,
    Effect,
)
from orchestrator.reporting.front import front
from orchestrator.reporting.published import import_results, load_published, with_published
from orchestrator.training.outcomes import Outcomes
from specs.experiment import Experiment

FOLDER = Path(__file__).parents[1] / "fixtures" / "published"


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
        assert shown["bars"] == {k: [c.std, c.std] for k, c in r.cells.items() if c.std is not None}
        assert shown["probability"] == r.front_probability
        assert f"probability {r.front_probability:.2f}" in shown["hover"]
        assert r.name in shown["hover"]
        assert all(str(key) in shown["hover"] for key in ("top-1 %", "MACs", "latency ms", "token_merging.kept"))
        assert r.name in page.text
    for axes, names in data["fronts"].items():
        assert names == sorted(front(comparison, *axes.split("|")))
    assert len(data["training"]) == 21
    assert data["training"][0]["values"]["val_top1"][-1][0] == 3
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
    assert (data["fronts"], data["training"], data["cost"]) == ({}, [], None)
    assert "0 of 6" in page.text
    assert "next is `teacher`" in page.text


def everything(lab: Any) -> Comparison:
    """A comparison that has all that a report can show."""
    comparison = compare(lab.plan, lab.store)
    first, second = comparison.rows[:2]
    doubtful = first.cells["latency_ms"].model_copy(update={"unreliable": "the baseline drifted by <8 %>"})
    alone = second.cells["latency_ms"].model_copy(update={"std": None, "interval": (4.0, 4.5), "value": 4.2})
    rows = (
        first.model_copy(update={"cells": first.cells | {"latency_ms": doubtful}}),
        second.model_copy(update={"cells": second.cells | {"latency_ms": alone}}),
        *comparison.rows[2:],
    )
    points = tuple(
        CurvePoint(setting=s, trained=s == 2, cells={"top1": Cell(value=90.0 - s), "macs": Cell(value=56e6 - 1e6 * s)})
        for s in (0.0, 2.0, 4.0)
    )
    effect = Effect(
        labels={"merging": "r2"}, against={"merging": "none"}, column="top1", value=-0.8, std_error=0.1, num_pairs=6
    )
    together = effect.model_copy(update={"labels": {"merging": "r2", "distill": "soft"}, "std_error": None})
    claim = ClaimResult(
        text="81 % with < 15 M parameters",
        budget="params < 15000000",
        combination=second.name,
        parts=(
            ClaimPart(text="top1 >= 81", value=91.2, holds=True),
            ClaimPart(text="throughput_ratio >= 2.4", value=2.0, holds=False),
            ClaimPart(text="peak_memory_ratio <= 0.63", value=None, holds=None, reason="no memory counter"),
        ),
    )
    files = [FOLDER / "results-imagenet.csv", *sorted(FOLDER.glob("benchmark-*.csv"))]
    import_results(files, "invented", lab.store)
    full = comparison.model_copy(
        update={
            "rows": rows,
            "curves": (Curve(combination=second.name, knob="token_merging.r", points=points),),
            "effects": (effect, together),
            "claims": (claim,),
        }
    )
    return with_published(full, [load_published("invented", lab.store)], lab.plan)


def test_every_part_has_its_data(finished: Any) -> None:
    comparison = everything(finished)
    page = Page(report.html(comparison, finished.plan, finished.experiment, finished.store))
    data = json.loads(page.held["data"])
    # An unreliable value: its reason on the mark, in the table, and in a list that needs no pointer.
    assert data["rows"][0]["unreliable"] == {"latency_ms": "the baseline drifted by &lt;8 %&gt;"}
    assert "⚠ merging=none,distill=none: latency_ms: the baseline drifted by <8 %>" in page.text
    # One seed: the interval of the measurement is the bar.
    assert data["rows"][1]["bars"]["latency_ms"] == pytest.approx([0.2, 0.3])
    (curve,) = data["operating"]
    assert [(p["setting"], p["trained"], p["values"]["top1"]) for p in curve["points"]] == [
        (0.0, False, 90.0),
        (2.0, True, 88.0),
        (4.0, False, 86.0),
    ]
    assert [(e["interaction"], e["value"], e["error"]) for e in data["effects"]] == [
        (False, -0.8, 0.1),
        (True, -0.8, None),
    ]
    for said in ("✓ top1 >= 81 holds, measured 91.2", "✗ throughput_ratio >= 2.4 does not hold, measured 2"):
        assert said in page.text
    assert "? peak_memory_ratio <= 0.63 cannot be told: no memory counter" in page.text
    assert "ANOTHER TASK" in page.text
    assert len(data["published"]) == len(comparison.published) == 7
    assert all("published by others under others' conditions" in p["hover"] for p in data["published"])
    assert data["published_fronts"]["top1|macs"][""] == [[75.0, 1.25e9], [80.0, 4.5e9]]
    assert all(f.sha256 in page.text for f in comparison.published_files)
    (volume,) = comparison.hypervolumes
    assert f"dominates: {volume.value / 1e6:.2f} M" in page.text
    hidden = {a.get("aria-labelledby") for tag, a in page.elements if tag == "section" and "hidden" in a}
    assert hidden == set()


def test_parts_without_data_are_hidden(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store).model_copy(update={"effects": (), "claims": ()})
    page = Page(report.html(comparison, finished.plan, finished.experiment, finished.store))
    hidden = {a.get("aria-labelledby") for tag, a in page.elements if tag == "section" and "hidden" in a}
    assert hidden == {"effects", "claims", "operating", "published"}


def test_the_evaluation_adds_up_over_seeds(finished: Any) -> None:
    data = json.loads(page_of(finished).held["data"])
    for shown in data["evaluations"]:
        of_seeds = [c for c in finished.plan.combinations if c.name == shown["name"]]
        files = [finished.store.root / "stages" / c.result / "evaluation.json" for c in of_seeds]
        confusions = [Outcomes.from_json(file.read_text()).confusion for file in files]
        expected = sum(int(m.trace()) for m in confusions) / sum(int(m.sum()) for m in confusions)
        assert shown["num_images"] == 3 * 1000
        assert shown["top1"] == pytest.approx(100 * expected)
        assert sum(n for *_, n in shown["confusion"]) == 3000
        assert shown["worst"] == sorted(shown["worst"], key=lambda w: w["top1"])
        assert all(0 <= b["hits"] <= b["confidence"] <= 100 for b in shown["bins"])


def test_costs_of_seeds_are_added_up(finished: Any) -> None:
    stages = json.loads(page_of(finished).held["data"])["stages"]
    assert sum(s["seconds"] for s in stages) == pytest.approx(
        sum(s.seconds or 0 for s in compare(finished.plan, finished.store).stages)
    )
    assert "teacher × 3 seeds" in {s["label"] for s in stages}


def test_the_baselines_own_cost(finished: Any) -> None:
    columns = {c["key"]: c["baseline"] for c in json.loads(page_of(finished).held["data"])["columns"]}
    assert columns["macs"] == pytest.approx(140e6)  # 56 M at a ratio of 0.4
    assert columns["top1"] is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here to open the report in")
def test_a_browser_draws_every_figure_without_an_error(finished: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report.html(everything(finished), finished.plan, finished.experiment, finished.store))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-drawn="yes"' in dom
    assert re.search(r'id="trouble"[^>]*hidden', dom)
    for figure in ("scatter", "effect", "operating-figure", "confusion", "reliability", "worst", "training", "costs"):
        assert re.search(rf'id="{figure}" class="figure[^"]*js-plotly-plot', dom), figure
    assert "all 6 shown" in dom


@pytest.mark.parametrize("name", ["page.html", "style.css", *report._SCRIPTS])
def test_the_parts_of_the_page_name_no_server(name: str) -> None:
    text = (report._PAGE / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
