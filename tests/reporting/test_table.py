"""The comparison as text: everything is said, with and without colour, at any width."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from rich.console import Console

from orchestrator.reporting import table
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Comparison


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


def test_values_marks_and_ratios(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    text = table.text(comparison, 160)
    for r in comparison.rows:
        line = line_of(text, r.name)
        assert line.startswith(table.OPTIMAL) == r.pareto
        assert f"{r.cells['top1'].value:.2f} ± {r.cells['top1'].std:.2f}" in line
        assert f"({r.cells['latency_ratio'].value:.2f}×)" in line
    assert "images/s @64" in text
    assert "peak_memory_mib of all measured combinations: no memory counter on this device" in text
    assert "merging=all,distill=none: left out of the plan; no token is left after block 3" in text


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_no_name_is_cut_and_what_does_not_fit_is_named(finished: Any, width: int) -> None:
    text = table.text(compare(finished.plan, finished.store), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    assert ("training s" in text.split("Not shown")[0]) == (width == 160)
    assert ("Not shown for want of room" in text) == (width < 160)


@pytest.mark.parametrize("width", [80, 100, 160, 200])
def test_plain_text_is_what_rich_would_draw(finished: Any, width: int) -> None:
    comparison = compare(finished.plan, finished.store)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(table.table(comparison, width))
    drawn = [line.rstrip() for line in capture.get().splitlines()]
    plain = table.text(comparison, width).splitlines()
    assert plain == drawn


def test_nothing_measured_yet(lab: Any) -> None:
    text = table.text(compare(lab.plan, lab.store), 100)
    assert "0 of 6 combinations measured" in text
    assert "next is `teacher`" in text


def test_json_is_the_comparison(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    assert Comparison.model_validate_json(table.to_json(comparison)) == comparison


def test_csv_holds_every_number_in_full(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    lines = list(csv.DictReader(io.StringIO(table.to_csv(comparison))))
    assert [line["combination"] for line in lines] == [r.name for r in comparison.rows]
    for line, r in zip(lines, comparison.rows, strict=True):
        assert (line["merging"], line["distill"]) == (r.labels["merging"], r.labels["distill"])
        for c in comparison.columns:
            cell = r.cells[c.key]
            assert (float(line[c.key]) if line[c.key] else None) == cell.value
            assert (float(line[f"{c.key}.std"]) if line[f"{c.key}.std"] else None) == cell.std
        assert line["peak_memory_mib.reason"] == "no memory counter on this device"
    assert json.loads(lines[0]["pareto"]) in (0, 1)


@pytest.mark.parametrize(
    ("value", "unit", "metric", "text"),
    [
        (1_254_000_000, "MACs/image", "macs", "1.254 G"),
        (56e6, "MACs/image", "macs", "56.00 M"),
        (999, "parameters", "params", "999"),
        (91.239, "%", "top1", "91.24"),
        (0.004213, "ms", "latency_ms", "0.004213"),
        (2197.4, "images/s", "throughput", "2197"),
        (0.0, "", "", "0"),
    ],
)
def test_numbers_for_people(value: float, unit: str, metric: str, text: str) -> None:
    assert table.number(value, unit, metric) == text
