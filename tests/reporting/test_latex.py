"""The LaTeX table: every value, escaped, with its marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.reporting.compare import compare
from orchestrator.reporting.latex import escape, to_latex
from orchestrator.reporting.table import number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("top-1 % & r_2", r"top-1 \% \& r\_2"), (r"a\b{c}", r"a\textbackslash{}b\{c\}"), ("1 ± 2×", r"1 $\pm$ 2$\times$")],
)
def test_escaping(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_rows_marks_and_structure(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    text = to_latex(comparison)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip("\n").splitlines()
    width = text.split(r"\toprule")[1].splitlines()[1].count(" & ")
    assert len(body) == len(comparison.rows)
    for line, r in zip(body, comparison.rows, strict=True):
        assert line.startswith(r"$\blacklozenge$") == r.pareto
        assert line.count(" & ") == width
        assert escape(r.name) in line
        top1 = number(r.cells["top1"].value, "%", "top1")
        assert (rf"\textbf{{{top1}}} $\pm$" in line) == r.cells["top1"].best
        assert f"({r.cells['latency_ratio'].value:.2f}$\\times$)" in line
    assert text.count("{") == text.count("}")


def test_missing_and_unreliable_values(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0,), distill=("none",), merging=("none", "r2")).finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        rows = [r for r in lab.rows(c) if r.name in ("top1", "latency_ms")]
        doubtful = c.labels["merging"] == "r2"
        lab.measure(c, [rows[0], rows[1].model_copy(update={"unreliable": "busy"})] if doubtful else rows[:1])
    lines = to_latex(compare(lab.plan, lab.store)).splitlines()
    assert " & -- & " in next(line for line in lines if "merging=none" in line)
    assert " ? & " in next(line for line in lines if "merging=r2" in line and "&" in line)
