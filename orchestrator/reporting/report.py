"""The comparison as one HTML file that needs nothing else: no network, no server, no second file.

The page, its style and its script lie in ``page/``. Every number, the Pareto fronts included, is computed here; the
script only draws. All text that comes from a spec, a strategy or an error is escaped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan, TrainStage
from orchestrator.reporting.front import front
from orchestrator.reporting.comparison import Cell, Column, Comparison, Row
from orchestrator.reporting.record import resolved_spec
from orchestrator.reporting.stored import read_history, stage_folder
from orchestrator.reporting.table import OPTIMAL, number, spread, title
from specs.experiment import Experiment

_PAGE = Path(__file__).parent / "page"


def html(comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore) -> str:
    """The report as text; the same input gives the same bytes.

    Raises:
        StoreError: if the history of a stage is damaged.
    """
    from plotly.offline import get_plotlyjs

    axes = " against ".join(a for a in (comparison.quality, comparison.cost) if a) or "nothing yet"
    page = Template((_PAGE / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        experiment=escape(comparison.experiment),
        description=escape(experiment.description),
        facts=_facts(comparison, experiment),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes),
        axes=escape(axes),
        table=_table(comparison),
        missing=_missing(comparison),
        sharing=_sharing(comparison),
        stages=_stages(comparison),
        conditions=_conditions(comparison),
        spec=escape(resolved_spec(experiment)),
        data=_embedded(_data(comparison, plan, store)),
        style=(_PAGE / "style.css").read_text(encoding="utf-8"),
        script=(_PAGE / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def _embedded(data: Any) -> str:
    """JSON that no browser can mistake for the end of its script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(comparison: Comparison, plan: Plan, store: ArtifactStore) -> dict[str, Any]:
    goals = [c.key for c in comparison.columns if c.direction != "none"]
    return {
        "columns": [{"key": c.key, "title": escape(title(c)), "direction": c.direction} for c in comparison.columns],
        "axes": list(dict.fromkeys(axis for r in comparison.rows for axis in r.labels)),
        "quality": comparison.quality,
        "cost": comparison.cost,
        "fronts": {f"{y}|{x}": sorted(front(comparison, y, x)) for y, x in itertools.combinations(goals, 2)},
        "rows": [
            {
                "name": r.name,
                "labels": r.labels,
                "values": {key: cell.value for key, cell in r.cells.items() if cell.value is not None},
                "spreads": {key: cell.std for key, cell in r.cells.items() if cell.std is not None},
                "groups": {key: cell.group for key, cell in r.cells.items() if cell.group is not None},
                "hover": _hover(r, comparison),
            }
            for r in comparison.rows
        ],
        "curves": list(_curves(plan, store)),
    }


def _curves(plan: Plan, store: ArtifactStore) -> Iterable[dict[str, Any]]:
    several = len({c.seed for c in plan.combinations}) > 1
    for stage in plan.walk():
        folder = stage_folder(store, stage.digest) if isinstance(stage, TrainStage) else None
        if folder is None or not isinstance(stage, TrainStage):
            continue
        values: dict[str, list[tuple[int, float]]] = {}
        for epoch in read_history(folder):
            for name, value in epoch.values.items():
                values.setdefault(name, []).append((epoch.epoch, value))
        if values:
            label = f"{stage.label}, seed {stage.seed}" if several else stage.label
            yield {"label": escape(label), "values": values}


def _hover(r: Row, comparison: Comparison) -> str:
    lines = [f"<b>{escape(r.name)}</b>", f"seeds: {', '.join(map(str, r.measured))}"]
    for c in comparison.columns:
        cell = r.cells[c.key]
        if cell.value is not None:
            bar = f" ± {spread(cell.std, c)}" if cell.std else ""
            lines.append(f"{escape(title(c))}: {number(cell.value, c.unit, c.metric)}{bar}")
    return "<br>".join(lines)


def _facts(comparison: Comparison, experiment: Experiment) -> str:
    measured = sum(r.status == "measured" for r in comparison.rows)
    seeds = {seed for r in comparison.rows for seed in r.seeds}
    baseline = experiment.measurement.baseline
    facts = {
        "Combinations measured": f"{measured} of {len(comparison.rows)}",
        "Pareto-optimal": str(sum(r.pareto for r in comparison.rows)),
        "Seeds each": str(len(seeds)),
        "Student": experiment.student.model,
        "Data": f"{getattr(experiment.data, 'name', experiment.data.kind)}, {experiment.data.image_size} px",
        "Baseline": baseline.model if baseline else "none",
    }
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())


def _table(comparison: Comparison) -> str:
    ratios = {c.ratio for c in comparison.columns}
    columns = [
        c
        for c in comparison.columns
        if c.key not in ratios and any(r.cells[c.key].value is not None for r in comparison.rows)
    ]
    head = f'<th data-first="descending"><button type="button" title="Pareto-optimal">{OPTIMAL}</button></th>'
    head += '<th class="name"><button type="button">Combination</button></th>'
    for c in columns:
        first = "descending" if c.direction == "higher" else "ascending"
        head += f'<th data-first="{first}"><button type="button" title="{escape(c.description)}">'
        head += f"{escape(title(c))}</button></th>"
    body = "".join(_table_row(r, columns) for r in comparison.rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _table_row(r: Row, columns: list[Column]) -> str:
    mark = OPTIMAL if r.pareto else ""
    cells = f'<td class="mark" data-value="{int(r.pareto)}">{mark}</td>'
    state = "" if r.status == "measured" else f' <span class="gap">({r.status})</span>'
    cells += f'<td class="name" data-value="{escape(r.name)}">{_breakable(r.name)}{state}</td>'
    cells += "".join(_table_cell(r, c) for c in columns)
    return f'<tr class="{"pareto" if r.pareto else ""}">{cells}</tr>'


def _table_cell(r: Row, column: Column) -> str:
    cell: Cell = r.cells[column.key]
    if cell.value is None:
        return f'<td class="gap" data-value="" title="{escape(cell.reason or "")}">–</td>'
    text = number(cell.value, column.unit, column.metric)
    if cell.std:
        text += f'<span class="spread"> ± {spread(cell.std, column)}</span>'
    if len(column.groups) > 1:
        text += f" [{cell.group}]"
    ratio = r.cells[column.ratio].value if column.ratio else None
    if ratio is not None:
        text += f'<span class="ratio">{ratio:.2f}×</span>'
    hint = f' title="{escape(cell.reason)}"' if cell.reason else ""
    return f'<td class="{"best" if cell.best else ""}" data-value="{cell.value!r}"{hint}>{text}</td>'


def _missing(comparison: Comparison) -> str:
    entries = [f"{r.name}: {r.status}; {r.detail}" for r in comparison.rows if r.detail]
    entries += [f"{name}: left out of the plan; {'; '.join(why)}" for name, why in comparison.dropped.items()]
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f'<section><h2 id="missing">Not (fully) measured</h2><ul>{items}</ul></section>'


def _sharing(comparison: Comparison) -> str:
    total = sum(stage.seconds or 0 for stage in comparison.stages)
    return (
        f"{len(comparison.stages)} stages instead of the {comparison.stages_alone} that the combinations would need "
        f"each alone; the finished ones took {total:.0f} s of their own time together."
    )


def _stages(comparison: Comparison) -> str:
    longest = max((stage.seconds or 0 for stage in comparison.stages), default=0) or 1
    head = "".join(
        f'<th{" class=name" if name == "Stage" else ""}><button type="button">{name}</button></th>'
        for name in ("Stage", "Kind", "Status", "Seconds", "", "Images/s", "Epochs", "Combinations", "Digest")
    )
    body = ""
    for s in comparison.stages:
        width = 100 * (s.seconds or 0) / longest
        body += (
            f'<tr><td class="name" data-value="{escape(s.label)}">{_breakable(s.label)}</td>'
            f'<td data-value="{s.kind}">{s.kind}</td><td data-value="{s.status}">{s.status}</td>'
            f"{_number_cell(s.seconds, places=1)}"
            f'<td class="barcell" data-value="{width}"><span class="bar" style="width:{width:.1f}%"></span></td>'
            f"{_number_cell(s.images_per_s)}{_number_cell(s.epochs)}{_number_cell(len(s.combinations))}"
            f'<td data-value="{s.digest}"><code>{s.digest[:12]}</code></td></tr>'
        )
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _number_cell(value: float | None, places: int = 0) -> str:
    if value is None:
        return '<td class="gap" data-value="">–</td>'
    return f'<td data-value="{value!r}">{value:.{places}f}</td>'


def _conditions(comparison: Comparison) -> str:
    """Columns taken under the same conditions share a line."""
    shared: dict[str, tuple[list[str], str, dict[str, Any]]] = {}
    for c in comparison.columns:
        for letter, group in c.groups.items():
            name = f"{c.key} [{letter}]" if len(c.groups) > 1 else c.key
            shared.setdefault(json.dumps(group, sort_keys=True), ([], letter, group))[0].append(name)
    body = ""
    for names, _, group in shared.values():
        stated = ", ".join(f"{key} = {value}" for key, value in group.items()) or "no condition changes it"
        body += f'<tr><td class="name">{escape(", ".join(names))}</td><td class="name">{escape(stated)}</td></tr>'
    head = '<th class="name">Metric</th><th class="name">Conditions</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _breakable(name: str) -> str:
    """A name, escaped, that may break after `,` and `[` rather than inside a word."""
    return escape(name).replace(",", ",<wbr>").replace("[", "[<wbr>")
