"""The report's tables and lists as HTML: readable without a script, by a screen reader, and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from orchestrator.reporting.comparison import Cell, ClaimPart, Column, Comparison, Row
from orchestrator.reporting.published import MEANING
from orchestrator.reporting.table import OPTIMAL, number, spread, title
from specs.experiment import Experiment

UNRELIABLE = "⚠"
"""Marks values that should not be trusted."""

_VERDICTS = {True: ("✓", "holds"), False: ("✗", "does not hold"), None: ("?", "cannot be told")}


def facts(comparison: Comparison, experiment: Experiment) -> str:
    """What the experiment was, in a few words."""
    measured = sum(r.status == "measured" for r in comparison.rows)
    seeds = {seed for r in comparison.rows for seed in r.seeds}
    baseline = experiment.measurement.baseline
    entries = {
        "Combinations measured": f"{measured} of {len(comparison.rows)}",
        "Pareto-optimal": str(sum(r.pareto for r in comparison.rows)),
        "Seeds each": str(len(seeds)),
        "Student": experiment.student.model,
        "Data": f"{getattr(experiment.data, 'name', experiment.data.kind)}, {experiment.data.image_size} px",
        "Baseline": baseline.model if baseline else "none",
    }
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in entries.items())


def notes(comparison: Comparison) -> str:
    """What a reader has to know before ranking; a note that shouts is shown as a warning."""
    lines = []
    for note in comparison.notes:
        loud = note.split(":")[0].isupper()
        attributes = 'class="note loud" role="alert"' if loud else 'class="note"'
        lines.append(f"<p {attributes}>{escape(note)}</p>")
    return "\n".join(lines)


def hypervolume(comparison: Comparison) -> str:
    """How much the front dominates, one sentence for each group of conditions."""
    if not (comparison.hypervolumes and comparison.quality and comparison.cost):
        return ""
    quality, cost = comparison.column(comparison.quality), comparison.column(comparison.cost)
    parts = []
    for v in comparison.hypervolumes:
        group = f" (conditions {v.group})" if len(comparison.hypervolumes) > 1 else ""
        size = number(v.value, cost.unit, cost.metric)
        error = f" ± {number(v.std, cost.unit, cost.metric)}" if v.std is not None else ""
        corner = " and ".join(
            f"{number(value, c.unit, c.metric)} {title(c)}"
            for value, c in zip(v.reference, (quality, cost), strict=True)
        )
        parts.append(f"{size}{error} {quality.unit} · {cost.unit}{group}, from the corner {corner}")
    text = "; ".join(parts)
    return f"<p class=caption>Hypervolume, the area that the front dominates: {escape(text)}.</p>"


def table(comparison: Comparison) -> str:
    """All combinations and metrics; ratios stand below the values they belong to."""
    ratios = {c.ratio for c in comparison.columns}
    columns = [
        c
        for c in comparison.columns
        if c.key not in ratios and any(r.cells[c.key].value is not None for r in comparison.rows)
    ]
    sure = any(r.front_probability is not None for r in comparison.rows)
    head = _heading(OPTIMAL, "Pareto-optimal", first="descending")
    head += _heading("Combination", "Labels on all axes", kind="name")
    if sure:
        head += _heading("on front", "Probability to be on the front, over the seeds", first="descending")
    for c in columns:
        head += _heading(title(c), c.description, first="descending" if c.direction == "higher" else "ascending")
    body = "".join(_row(r, columns, sure) for r in comparison.rows)
    return f'<table class="sortable" id="combinations"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def missing(comparison: Comparison) -> str:
    """Combinations without all values, and values that should not be trusted, each with its reason."""
    entries = [f"{r.name}: {r.status}; {r.detail}" for r in comparison.rows if r.detail]
    entries += [f"{name}: left out of the plan; {'; '.join(why)}" for name, why in comparison.dropped.items()]
    doubts: dict[tuple[str, str], list[str]] = {}
    for r in comparison.rows:
        for key, cell in r.cells.items():
            if cell.unreliable:
                doubts.setdefault((r.name, cell.unreliable), []).append(key)
    entries += [f"{UNRELIABLE} {name}: {', '.join(keys)}: {why}" for (name, why), keys in doubts.items()]
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f'<section><h2 id="missing">Not (fully) measured, or not to be trusted</h2><ul>{items}</ul></section>'


def claims(comparison: Comparison) -> str:
    """Each claim with its parts, checked."""
    return "".join(
        f"<article class=claim><h3>“{escape(claim.text)}”</h3>"
        f"<p>Best top-1 with {escape(claim.budget)}: <b>{escape(claim.combination or 'no combination fits')}</b></p>"
        f"<ul class=parts>{''.join(_part(part) for part in claim.parts)}</ul></article>"
        for claim in comparison.claims
    )


def effects(comparison: Comparison) -> str:
    """All effects as a table: the figure shows one metric at a time."""
    body = ""
    for e in comparison.effects:
        column = comparison.column(e.column)
        chosen = " × ".join(f"{axis}={label}" for axis, label in e.labels.items())
        error = "–" if e.std_error is None else f"{e.std_error:.3g}"
        body += (
            f'<tr><td class="name" data-value="{escape(title(column))}">{escape(title(column))}</td>'
            f'<td class="name" data-value="{escape(chosen)}">{_breakable(chosen)}</td>'
            f'<td class="name" data-value="">{escape(", ".join(e.against.values()))}</td>'
            f'<td data-value="{e.value!r}">{e.value:+.4g} {e.unit}</td>'
            f'<td data-value="{"" if e.std_error is None else repr(e.std_error)}">{error}</td>'
            f'<td data-value="{e.num_pairs}">{e.num_pairs}</td></tr>'
        )
    head = "".join(_heading(name, kind="name") for name in ("Metric", "Choice", "Against"))
    head += "".join(_heading(name) for name in ("Effect", "± standard error", "Pairs"))
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def sharing(comparison: Comparison) -> str:
    """What sharing stages saved."""
    total = sum(stage.seconds or 0 for stage in comparison.stages)
    return (
        f"{len(comparison.stages)} stages instead of the {comparison.stages_alone} that the combinations would need "
        f"each alone; the finished ones took {total:.0f} s of their own time together."
    )


def stages(comparison: Comparison) -> str:
    """Every stage of the plan and what it took."""
    names = ("Status", "Seconds", "Teacher s", "Device-h", "Images/s", "Epochs", "Combinations", "Digest")
    head = _heading("Stage", kind="name") + _heading("Kind") + "".join(_heading(name) for name in names)
    body = "".join(
        (
            f'<tr><td class="name" data-value="{escape(s.label)}">{_breakable(s.label)}</td>'
            f'<td data-value="{s.kind}">{s.kind}</td><td data-value="{s.status}">{s.status}</td>'
            f"{_number(s.seconds, places=1)}{_number(s.teacher_seconds, places=1)}{_number(s.device_hours, places=4)}"
            f"{_number(s.images_per_s)}{_number(s.epochs)}{_number(len(s.combinations))}"
            f'<td data-value="{s.digest}"><code>{s.digest[:12]}</code></td></tr>'
        )
        for s in comparison.stages
    )
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def conditions(comparison: Comparison) -> str:
    """Columns taken under the same conditions share a line."""
    shared: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for c in comparison.columns:
        for letter, group in c.groups.items():
            name = f"{c.key} [{letter}]" if len(c.groups) > 1 else c.key
            shared.setdefault(json.dumps(group, sort_keys=True), ([], group))[0].append(name)
    lines = [
        (", ".join(names), ", ".join(f"{key} = {value}" for key, value in group.items()) or "no condition changes it")
        for names, group in shared.values()
    ]
    return _plain_table(("Metric", "Conditions"), lines)


def published(comparison: Comparison) -> str:
    """Where others' numbers come from."""
    lines = [
        (f.file, ", ".join(f"{key}: {value}" for key, value in f.conditions.items()), f.sha256)
        for f in comparison.published_files
    ]
    intro = f"<p>{len(comparison.published)} points {escape(MEANING)}, read from these files.</p>"
    return intro + f'<div class="scroll">{_plain_table(("File", "What its name tells", "SHA-256"), lines)}</div>'


def _heading(text: str, hint: str = "", *, first: str = "", kind: str = "") -> str:
    """A heading that sorts its column when pressed."""
    attributes = (f' data-first="{first}"' if first else "") + (f' class="{kind}"' if kind else "")
    button = (
        f'<button type="button"{f" title={chr(34)}{escape(hint)}{chr(34)}" if hint else ""}>{escape(text)}</button>'
    )
    return f'<th scope="col"{attributes}>{button}</th>'


def _row(r: Row, columns: Iterable[Column], sure: bool) -> str:
    mark = f'<span title="Pareto-optimal">{OPTIMAL}</span>' if r.pareto else ""
    cells = f'<td class="mark" data-value="{int(r.pareto)}">{mark}</td>'
    state = "" if r.status == "measured" else f' <span class="gap">({r.status})</span>'
    cells += f'<th scope="row" class="name" data-value="{escape(r.name)}">{_breakable(r.name)}{state}</th>'
    if sure:
        p = r.front_probability
        cells += '<td class="gap" data-value="">–</td>' if p is None else f'<td data-value="{p!r}">{p:.2f}</td>'
    cells += "".join(_cell(r, c) for c in columns)
    return f'<tr class="{"pareto" if r.pareto else ""}">{cells}</tr>'


def _cell(r: Row, column: Column) -> str:
    cell: Cell = r.cells[column.key]
    if cell.value is None:
        return f'<td class="gap" data-value="" title="{escape(cell.reason or "")}">–</td>'
    text = number(cell.value, column.unit, column.metric)
    if cell.std:
        text += f'<span class="spread"> ± {spread(cell.std, column)}</span>'
    if len(column.groups) > 1:
        text += f" [{cell.group}]"
    if cell.unreliable:
        text += (
            f' <span class="doubt" role="img" aria-label="unreliable: {escape(cell.unreliable)}">{UNRELIABLE}</span>'
        )
    ratio = r.cells[column.ratio].value if column.ratio else None
    if ratio is not None:
        text += f'<span class="ratio">{ratio:.2f}×</span>'
    hints = [f"unreliable: {cell.unreliable}"] if cell.unreliable else []
    hints += [cell.reason] if cell.reason else []
    if cell.interval and cell.std is None:
        low, high = (number(end, column.unit, column.metric) for end in cell.interval)
        hints.append(f"95 % interval {low} to {high}")
    hint = f' title="{escape("; ".join(hints))}"' if hints else ""
    return f'<td class="{"best" if cell.best else ""}" data-value="{cell.value!r}"{hint}>{text}</td>'


def _part(part: ClaimPart) -> str:
    sign, word = _VERDICTS[part.holds]
    value = f", measured {part.value:.4g}" if part.value is not None else ""
    reason = f": {escape(part.reason)}" if part.reason else ""
    said = f"<code>{escape(part.text)}</code> {word}{value}{reason}"
    return f'<li><span class="sign" aria-hidden="true">{sign}</span> {said}</li>'


def _number(value: float | None, places: int = 0) -> str:
    if value is None:
        return '<td class="gap" data-value="">–</td>'
    return f'<td data-value="{value!r}">{value:.{places}f}</td>'


def _plain_table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col" class="name">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f'<td class="name">{escape(text)}</td>' for text in line) + "</tr>" for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _breakable(name: str) -> str:
    """A name, escaped, that may break after `,` and `[` rather than inside a word."""
    return escape(name).replace(",", ",<wbr>").replace("[", "[<wbr>")
