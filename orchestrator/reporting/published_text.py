"""Others' numbers as text, below one's own table and apart from it."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.reporting.comparison import Comparison, PublishedPoint
from orchestrator.reporting.published import MEANING, published_front
from orchestrator.reporting.table import WIDE, number
from specs.metrics import METRICS

_SHOWN = ("top1", "macs", "params", "throughput", "latency_ms")
_ROWS = 20
"""Points of a front that are printed; the report has all."""


def published_text(comparison: Comparison) -> str:
    """Others' own front in the metrics of the comparison's axes, one table a group; empty without others' numbers."""
    if not comparison.published:
        return ""
    quality = comparison.column(comparison.quality).metric if comparison.quality else "top1"
    cost = comparison.column(comparison.cost).metric if comparison.cost else "macs"
    heading = f"{MEANING[0].upper()}{MEANING[1:]}, ranked with nothing above"
    fronts = published_front(comparison.published, quality, cost)
    if not fronts:
        return f"{heading}: {len(comparison.published)} points, none of which has both {quality} and {cost}.\n"
    lines = [f"{heading}; their own front in {quality} against {cost}:", ""]
    for group, points in fronts.items():
        lines += [f"{group}:"] if group else []
        lines += [_table(points[:_ROWS])]
        lines += [f"… and {len(points) - _ROWS} more."] if len(points) > _ROWS else []
    return "\n".join(lines).rstrip() + "\n"


def _table(points: Iterable[PublishedPoint]) -> str:
    points = list(points)
    metrics = [metric for metric in _SHOWN if any(metric in p.values for p in points)]
    drawn = Table(pad_edge=False, box=None)
    drawn.add_column("network", overflow="fold")
    drawn.add_column("px", justify="right")
    for metric in metrics:
        unit = "" if metric in ("macs", "params") else METRICS[metric].unit
        drawn.add_column(Text(f"{metric} [{unit}]" if unit else metric), justify="right")
    drawn.add_column("batch", justify="right")
    for p in points:
        values = [
            number(p.values[metric], METRICS[metric].unit, metric) if metric in p.values else "–" for metric in metrics
        ]
        size, batch = (str(p.conditions.get(key, "–")) for key in ("image_size", "batch_size"))
        drawn.add_row(Text(p.name), size, *values, batch)
    console = Console(file=io.StringIO(), width=WIDE, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
