"""The figure for papers: every point on it, the same bytes each time, fonts that journals take."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.reporting import figure
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Cell, Comparison, Curve, CurvePoint

SIGNATURES: dict[figure.Format, bytes] = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def comparison(finished: Any) -> Comparison:
    return compare(finished.plan, finished.store)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_the_same_comparison_is_the_same_file(comparison: Comparison, kind: figure.Format) -> None:
    drawn = figure.draw(comparison, kind, "vit_tiny_patch16_224")
    assert drawn.startswith(SIGNATURES[kind])
    assert drawn == figure.draw(comparison, kind, "vit_tiny_patch16_224")


def test_fonts_are_embedded_as_truetype(comparison: Comparison) -> None:
    drawn = figure.draw(comparison, "pdf")
    assert b"/FontFile2" in drawn
    assert b"/Type3" not in drawn


def test_letters_of_an_svg_need_no_font(comparison: Comparison) -> None:
    drawn = figure.draw(comparison, "svg").decode()
    assert "<text" not in drawn
    # matplotlib says beside the outlines what they spell.
    spelt = set(re.findall(r"<!-- (.*?) -->", drawn))
    assert {"MACs per image", "top-1 %", "Pareto front", "merging=r4", "baseline at 140.0 M →"} <= spelt


def test_kinds_differ_without_colour(comparison: Comparison) -> None:
    drawn = figure.draw(comparison, "svg").decode()
    outlines = set()
    for line in re.findall(r'<path id="(m[0-9a-f]+)" d="([^"]+)" style="stroke: #(?:0072b2|d55e00|009e73)', drawn):
        outlines.add(re.sub(r"[\d.\- \n]+", " ", line[1]))
    assert len(outlines) >= 3


def test_curves_and_others_points_are_added(comparison: Comparison, finished: Any) -> None:
    points = tuple(
        CurvePoint(setting=s, trained=s == 0, cells={"top1": Cell(value=90 - s), "macs": Cell(value=5e7 - 1e6 * s)})
        for s in (0, 1, 2)
    )
    curve = Curve(combination=comparison.rows[0].name, knob="token_merging.r", points=points)
    plain = figure.draw(comparison, "svg").decode()
    drawn = figure.draw(comparison.model_copy(update={"curves": (curve,)}), "svg").decode()
    assert "operating points" not in plain
    assert "<!-- operating points -->" in drawn


def test_nothing_measured_is_no_figure(lab: Any) -> None:
    with pytest.raises(UsageError, match="`lab` has no figure yet"):
        figure.draw(compare(lab.plan, lab.store), "png")


def test_no_global_state_of_matplotlib(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(comparison.model_dump_json())
    code = """
import sys
from pathlib import Path
from orchestrator.reporting import figure
from orchestrator.reporting.comparison import Comparison
assert "matplotlib" not in sys.modules  # `compare` without a figure does not wait for it
import matplotlib
before = {key: matplotlib.rcParams[key] for key in figure._STYLE}
figure.draw(Comparison.model_validate_json(Path(sys.argv[1]).read_text()), "png")
assert {key: matplotlib.rcParams[key] for key in figure._STYLE} == before
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path / "comparison.json")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
