"""The Pareto figure for papers, as PNG, SVG or PDF with fonts embedded; told apart without colour, in print as well.

Drawn with matplotlib's objects alone (`Figure` and its canvas): no global state, no display.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import UsageError
from orchestrator.reporting.comparison import Column, Comparison, Curve, Row
from orchestrator.reporting.published import MEANING, published_front
from orchestrator.reporting.report_data import baseline_value
from orchestrator.reporting.table import number, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Format = Literal["png", "svg", "pdf"]

_MARKERS = "osD^Pp*vhX"
"""Filled markers of different outlines; the first axis of the matrix picks one."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a6d00", "#7f7f7f")
"""Okabe and Ito's, as in the report."""

_GREY = "0.55"
_PUBLISHED = "2"  # a tripod: nothing of one's own has it
_DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_DECADES = 30.0
"""Costs further apart than this factor are drawn on a logarithmic axis."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, whole: journals refuse Type 3
    "svg.fonttype": "path",  # letters as outlines look alike without the font
    "svg.hashsalt": "slimvit",  # the same comparison gives the same bytes
}


def draw(comparison: Comparison, output_format: Format, baseline: str | None = None) -> bytes:
    """The figure of the comparison's quality against its cost, as a file's bytes; the same input gives the same ones.

    Args:
        comparison: with its axes, front, curves and others' points.
        output_format: `png` (300 dots an inch), `svg` or `pdf`.
        baseline: name of the reference network; its cost is marked, for it was measured too, its quality was not.

    Raises:
        UsageError: if nothing is measured on both axes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not (comparison.quality and comparison.cost):
        raise UsageError(
            f"`{comparison.experiment}` has no figure yet: no combination has both quality and cost measured. "
            "Run it first."
        )
    quality, cost = comparison.column(comparison.quality), comparison.column(comparison.cost)
    out = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        axes = figure.add_subplot()
        _scale(axes, comparison, cost)
        _draw_published(axes, comparison, quality, cost)
        _draw_front(axes, comparison.rows, quality, cost)
        _draw_curves(axes, comparison.curves, quality, cost)
        _draw_rows(axes, comparison.rows, quality, cost)
        _draw_baseline(axes, comparison, cost, baseline)
        axes.set_xlabel(_label(cost))
        axes.set_ylabel(_label(quality))
        axes.grid(linewidth=0.3, color="0.85")
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=7)
        # Without a date the same figure is the same file.
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[output_format]
        figure.savefig(out, format=output_format, dpi=300, metadata=metadata)
    return out.getvalue()


def _draw_rows(axes: Axes, rows: tuple[Row, ...], quality: Column, cost: Column) -> None:
    """Combinations: filled on the front, hollow off it, crossed where a value is unreliable."""
    axis = next(iter(rows[0].labels), None)
    kinds = list(dict.fromkeys(r.labels.get(axis, "") if axis else "" for r in rows))
    labelled: set[str] = set()
    for r in rows:
        x, y = r.cells[cost.key], r.cells[quality.key]
        if x.value is None or y.value is None:
            continue
        kind = r.labels.get(axis, "") if axis else ""
        k = kinds.index(kind)
        colour = _COLOURS[k % len(_COLOURS)]
        axes.errorbar(
            x.value,
            y.value,
            xerr=x.std or None,
            yerr=y.std or None,
            marker=_MARKERS[k % len(_MARKERS)],
            markersize=5.5,
            color=colour,
            markerfacecolor=colour if r.pareto else "white",
            markeredgewidth=1.1,
            elinewidth=0.7,
            capsize=1.5,
            linestyle="none",
            zorder=4,
            label=(f"{axis}={kind}" if axis else "combinations") if kind not in labelled else None,
        )
        labelled.add(kind)
        if x.unreliable or y.unreliable:
            known = "unreliable" in labelled
            axes.plot(
                x.value, y.value, "x", color="black", markersize=9, zorder=5, label=None if known else "unreliable"
            )
            labelled.add("unreliable")


def _draw_front(axes: Axes, rows: tuple[Row, ...], quality: Column, cost: Column) -> None:
    """One staircase for each group of conditions."""
    groups: dict[tuple[str | None, str | None], list[tuple[float, float]]] = {}
    for r in rows:
        x, y = r.cells[cost.key], r.cells[quality.key]
        if r.pareto and x.value is not None and y.value is not None:
            groups.setdefault((x.group, y.group), []).append((x.value, y.value))
    for k, points in enumerate(groups.values()):
        _stairs(axes, points, cost, color="0.2", linestyle=":", linewidth=1.2, label="Pareto front" if k == 0 else None)


def _draw_curves(axes: Axes, curves: tuple[Curve, ...], quality: Column, cost: Column) -> None:
    """Each trained network as a line through the settings of its knob."""
    drawn = 0
    for curve in curves:
        points = [(p.cells.get(cost.key), p.cells.get(quality.key)) for p in curve.points]
        values = [(x.value, y.value) for x, y in points if x and y and x.value is not None and y.value is not None]
        if len(values) < 2:
            continue
        axes.plot(
            *zip(*values, strict=True),
            marker="|",
            markersize=5,
            color="0.35",
            linewidth=0.8,
            linestyle=_DASHES[drawn % len(_DASHES)],
            zorder=2,
            label="operating points" if drawn == 0 else None,
        )
        drawn += 1


def _draw_published(axes: Axes, comparison: Comparison, quality: Column, cost: Column) -> None:
    """Others' points, grey and apart, with their own front as a thin line."""
    taken = {
        (p.name, p.values[cost.metric], p.values[quality.metric])
        for p in comparison.published
        if cost.metric in p.values and quality.metric in p.values
    }
    if not taken:
        return
    label = MEANING.replace(" under", "\nunder")
    points = sorted((x, y) for _, x, y in taken)
    axes.plot(*zip(*points, strict=True), _PUBLISHED, color=_GREY, markersize=6, label=label, zorder=1)
    for k, front in enumerate(published_front(comparison.published, quality.metric, cost.metric).values()):
        steps = [(p.values[cost.metric], p.values[quality.metric]) for p in front]
        _stairs(axes, steps, cost, color=_GREY, linestyle="-", linewidth=0.6, label="their front" if k == 0 else None)


def _draw_baseline(axes: Axes, comparison: Comparison, cost: Column, name: str | None) -> None:
    """A line where the baseline's cost lies; an arrow, where the line would squeeze everything else."""
    value = baseline_value(comparison, cost)
    own = [v for r in comparison.rows if (v := r.cells[cost.key].value) is not None]
    if value is None or not own:
        return
    room = 0.5 * (max(own) - min(own) or max(own))
    far = axes.get_xscale() == "linear" and not min(own) - room <= value <= max(own) + room
    if not far:
        label = f"cost of the baseline\n{name}" if name else "cost of the baseline"
        axes.axvline(value, color="0.2", linestyle=(0, (8, 3)), linewidth=0.7, label=label, zorder=0)
        return
    said = f"baseline at {number(value, cost.unit, cost.metric)}"
    right = value > max(own)
    axes.annotate(
        f"{said} →" if right else f"← {said}",
        (0.99 if right else 0.01, 0.01),
        xycoords="axes fraction",
        horizontalalignment="right" if right else "left",
        fontsize=7,
        color="0.2",
    )


def _stairs(axes: Axes, points: list[tuple[float, float]], cost: Column, **style: Any) -> None:
    """A front's points joined by steps, along which nothing is promised that was not measured."""
    where: Literal["pre", "post"] = "pre" if cost.direction == "higher" else "post"
    axes.step(*zip(*sorted(points), strict=True), where=where, **style)


def _scale(axes: Axes, comparison: Comparison, cost: Column) -> None:
    from matplotlib.ticker import EngFormatter

    values = [r.cells[cost.key].value for r in comparison.rows] + [
        p.values.get(cost.metric) for p in comparison.published
    ]
    known = [v for v in values if v is not None and v > 0]
    if known and max(known) > _DECADES * min(known):
        axes.set_xscale("log")
    if known and max(known) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _label(column: Column) -> str:
    """Name and unit; a count's unit is its name."""
    name = title(column)
    if column.metric == "macs":
        return "MACs per image"
    if column.metric == "params":
        return "parameters"
    unit = column.unit
    return name if not unit or unit.split("/")[0] in name or unit in name else f"{name} [{unit}]"
