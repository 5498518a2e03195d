"""The comparison as text: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io

from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.reporting.comparison import NOT_TAKEN, Column, Comparison, Hypervolume, Row

WIDE = 200
"""Characters of a table that goes into a file or a pipe."""

OPTIMAL = "◆"
"""Marks Pareto-optimal rows; a character, because colour does not reach everybody."""

UNRELIABLE = "?"
"""Marks values that should not be trusted."""

_SHOWN = ("top1", "macs", "params", "latency_ms", "throughput", "peak_memory_mib", "checkpoint_mib", "train_seconds")
"""Metrics of the table in order of importance; where the terminal is narrow, the last ones give way."""

_TITLES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "macs": "MACs",
    "params": "params",
    "latency_ms": "latency ms",
    "latency_p95_ms": "p95 latency ms",
    "train_images_per_s": "training images/s",
    "throughput": "images/s",
    "peak_memory_mib": "memory MiB",
    "checkpoint_mib": "weights MiB",
    "train_seconds": "training s",
}

_PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3))


_Styled = list[tuple[str, str]]
"""The pieces of a cell with their styles; the first one's is the whole cell's."""


class _Drawn:
    """A column as it is shown."""

    def __init__(self, title: str, cells: list[_Styled]) -> None:
        self.title, self.cells = title, cells
        self.plain = ["".join(piece for piece, _ in cell) for cell in cells]
        self.width = max(map(cell_len, (*title.split("\n"), *self.plain)))

    def lines(self, height: int) -> list[str]:
        """Heading, over `height` lines, and cells."""
        heading = self.title.split("\n")
        return [""] * (height - len(heading)) + heading + self.plain


def table(comparison: Comparison, width: int = 120) -> RenderableType:
    """The comparison for a terminal of `width` characters: best per column bold, Pareto-optimal rows marked."""
    named, kept, hidden = _columns(comparison, width)
    drawn = Table(pad_edge=False, box=None)
    drawn.add_column("", no_wrap=True)
    drawn.add_column(named.title, overflow="fold")
    for column in kept:
        drawn.add_column(column.title, justify="right", no_wrap=True)
    for r, *cells in zip(comparison.rows, *(column.cells for column in (named, *kept)), strict=True):
        mark = Text(OPTIMAL if r.pareto else " ", style="green")
        drawn.add_row(mark, *map(_rich, cells), style="" if r.measured else "dim")
    return Group(Text(_title(comparison), style="bold"), drawn, Text("\n".join(_foot(comparison, hidden))))


def text(comparison: Comparison, width: int = 120) -> str:
    """`table` as plain text, without colour and bold. Its rows are put together here: rich takes ten times as long."""
    named, kept, hidden = _columns(comparison, width)
    room = max(1, min(named.width, width - 3 - sum(2 + column.width for column in kept)))
    height = 1 + max(column.title.count("\n") for column in (named, *kept))
    marks = [" "] * height + [OPTIMAL if r.pareto else " " for r in comparison.rows]
    lines = _wrapped(_title(comparison), width)
    for mark, name, *cells in zip(marks, *(column.lines(height) for column in (named, *kept)), strict=True):
        values = "".join(f"  {_blank(column.width, cell)}{cell}" for column, cell in zip(kept, cells, strict=True))
        first, *rest = [name] if named.width <= room else chop_cells(name, room) or [""]
        lines += [f"{mark}  {first}{_blank(room, first)}{values}", *(f"   {part}" for part in rest)]
    lines += _wrapped("\n".join(_foot(comparison, hidden)), width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_json(comparison: Comparison) -> str:
    """The whole comparison; `Comparison.model_validate_json` reads it back."""
    return comparison.model_dump_json(indent=2) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line a combination; for each metric its mean, standard deviation, number of seeds and group of conditions.

    Missing values are empty; `<metric>.reason` says why, where a metric is missing anywhere. Likewise there are 95 %
    intervals of single measurements (`.low`, `.high`) and why a value is unreliable, where any is.
    """
    with_reason = {c.key for c in comparison.columns if any(r.cells[c.key].reason for r in comparison.rows)}
    doubtful = {c.key for c in comparison.columns if any(r.cells[c.key].unreliable for r in comparison.rows)}
    with_interval = {c.key for c in comparison.columns if any(r.cells[c.key].interval for r in comparison.rows)}
    head = ["combination", *_axes(comparison), "status", "detail", "pareto", "front_probability", "seeds"]
    for c in comparison.columns:
        head += [c.key, f"{c.key}.std", f"{c.key}.n", f"{c.key}.conditions"]
        head += [f"{c.key}.low", f"{c.key}.high"] if c.key in with_interval else []
        head += [f"{c.key}.unreliable"] if c.key in doubtful else []
        head += [f"{c.key}.reason"] if c.key in with_reason else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for r in comparison.rows:
        line: list[object] = [r.name, *(r.labels.get(axis, "") for axis in _axes(comparison))]
        line += [r.status, r.detail, int(r.pareto), _or_empty(r.front_probability)]
        line += [" ".join(str(seed) for seed in r.measured)]
        for c in comparison.columns:
            cell = r.cells[c.key]
            line += [_or_empty(cell.value), _or_empty(cell.std), cell.num_seeds, cell.group or ""]
            line += list(cell.interval or ("", "")) if c.key in with_interval else []
            line += [cell.unreliable or ""] if c.key in doubtful else []
            line += [cell.reason or ""] if c.key in with_reason else []
        writer.writerow(line)
    return out.getvalue()


def number(value: float, unit: str = "", metric: str = "") -> str:
    """A value for people: counts with k, M, G; everything else with four significant digits."""
    if metric in ("top1", "top5"):
        return f"{value:.2f}"
    if unit.startswith(("parameters", "MACs")):
        for prefix, factor in _PREFIXES:
            if abs(value) >= factor:
                return f"{value / factor:#.4g}".rstrip(".") + f" {prefix}"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:#.4g}"


def spread(std: float, column: Column) -> str:
    """A standard deviation for people: two significant digits, or as many places as the value has."""
    if column.unit.startswith(("parameters", "MACs")):
        return number(std, column.unit, column.metric)
    return f"{std:.2f}" if column.metric in ("top1", "top5") else f"{std:#.2g}".rstrip(".")


def title(column: Column) -> str:
    """Heading of a column, with its unit."""
    if column.metric not in _TITLES:
        return f"{column.key} [{column.unit}]" if column.unit else column.key
    name = _TITLES[column.metric]
    return name if column.batch_size is None else f"{name} @{column.batch_size}"


def shown_columns(comparison: Comparison) -> list[Column]:
    """The table's columns: each metric of `_SHOWN` once, at its largest batch size; no column of gaps only."""
    found = [comparison.find(name) for name in _SHOWN]
    return [c for c in found if c is not None and any(r.cells[c.key].value is not None for r in comparison.rows)]


def _draw(comparison: Comparison, column: Column) -> _Drawn:
    lettered = len(column.groups) > 1
    heading = title(column) + ("\n(× baseline)" if column.ratio else "")
    return _Drawn(heading, [_value(r, column, lettered) for r in comparison.rows])


def _value(r: Row, column: Column, lettered: bool) -> _Styled:
    cell = r.cells[column.key]
    if cell.value is None:
        return [("–", "dim")]
    drawn = [(number(cell.value, column.unit, column.metric), "bold" if cell.best else "")]
    if cell.std is not None and cell.std > 0:
        drawn.append((f" ± {spread(cell.std, column)}", "dim"))
    ratio = r.cells[column.ratio].value if column.ratio else None
    if ratio is not None:
        drawn.append((f" ({ratio:.2f}×)", "not bold"))
    if lettered:
        drawn.append((f" [{cell.group}]", ""))
    if cell.unreliable:
        drawn.append((f" {UNRELIABLE}", "not bold"))
    if cell.reason:
        drawn.append((" !", ""))
    return drawn


def _probability(r: Row) -> _Styled:
    return [("–", "dim") if r.front_probability is None else (f"{r.front_probability:.2f}", "")]


def _rich(cell: _Styled) -> Text:
    """A cell for a terminal."""
    (first, style), *rest = cell
    drawn = Text(first, style=style)
    for piece, own in rest:
        drawn.append(piece, own or None)
    return drawn


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of prose."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        console.print(Text(text))
    return capture.get().splitlines()


def _blank(width: int, content: str) -> str:
    """What fills a cell up to its width."""
    return " " * (width - cell_len(content))


def _columns(comparison: Comparison, width: int) -> tuple[_Drawn, list[_Drawn], list[_Drawn]]:
    """Names, the columns that fit beside them into `width` characters, and those that do not."""
    named = _Drawn("combination", [[(r.name, "bold" if r.pareto else "")] for r in comparison.rows])
    drawn_columns = [_draw(comparison, c) for c in shown_columns(comparison)]
    if any(r.front_probability is not None for r in comparison.rows):
        drawn_columns.insert(2, _Drawn("on front", [_probability(r) for r in comparison.rows]))
    return named, *_fitting(drawn_columns, width - named.width - 5)


def _fitting(columns: list[_Drawn], room: int) -> tuple[list[_Drawn], list[_Drawn]]:
    """The columns that fit into `room` characters, and the rest; at least two are kept."""
    kept: list[_Drawn] = []
    for column in columns:
        if len(kept) >= 2 and room < column.width + 2:
            break
        kept.append(column)
        room -= column.width + 2
    return kept, columns[len(kept) :]


def _title(comparison: Comparison) -> str:
    done = sum(r.status == "measured" for r in comparison.rows)
    return f"{comparison.experiment}: {done} of {len(comparison.rows)} combinations measured"


def _foot(comparison: Comparison, hidden: list[_Drawn]) -> list[str]:
    lines = [""]
    if comparison.quality and comparison.cost:
        lines.append(f"{OPTIMAL} Pareto-optimal in {comparison.quality} against {comparison.cost}.")
        if any(r.front_probability is not None for r in comparison.rows):
            lines.append("on front: probability to be Pareto-optimal, given the spread over seeds.")
        lines += [_volume(comparison, volume) for volume in comparison.hypervolumes]
    if any(cell.std for r in comparison.rows for cell in r.cells.values()):
        lines.append("± sample standard deviation over seeds.")
    if hidden:
        names = ", ".join(column.title.split("\n")[0] for column in hidden)
        lines.append(f"Not shown for want of room: {names}; `--format csv` has everything.")
    lines += [f"Note: {note}" for note in comparison.notes]
    lines += [f"{r.name}: {r.status}; {r.detail}" for r in comparison.rows if r.detail]
    lines += _gaps(comparison)
    lines += [f"{name}: left out of the plan; {'; '.join(reasons)}" for name, reasons in comparison.dropped.items()]
    return lines if len(lines) > 1 else []


def _volume(comparison: Comparison, volume: Hypervolume) -> str:
    letters = f" of conditions {volume.group}" if len(comparison.hypervolumes) > 1 else ""
    error = f" ± {volume.std:.2g}" if volume.std else ""
    corner = ", ".join(f"{value:.4g}" for value in volume.reference)
    return f"Hypervolume{letters}: {volume.value:.4g}{error}, from the worst values ({corner})."


def _gaps(comparison: Comparison) -> list[str]:
    """Why values of measured combinations are missing, each reason once."""
    metrics: dict[tuple[str, ...], dict[str, list[str]]] = {}
    measured = [r for r in comparison.rows if r.measured]
    for c in comparison.columns:
        reasons: dict[str, list[str]] = {}
        for r in measured:
            reason = r.cells[c.key].reason
            own = "." in c.metric and reason == NOT_TAKEN  # another strategy's report of itself
            if reason and reason != r.detail and not own:
                reasons.setdefault(reason, []).append(r.name)
        for reason, names in reasons.items():
            metrics.setdefault(tuple(names), {}).setdefault(reason, []).append(c.key)
    lines = []
    for who_lacks_it, by_reason in metrics.items():
        everybody = len(who_lacks_it) == len(measured) > 1
        who = "all measured combinations" if everybody else ", ".join(who_lacks_it)
        lines += [f"{', '.join(keys)} of {who}: {reason}" for reason, keys in by_reason.items()]
    return lines


def _axes(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(axis for r in comparison.rows for axis in r.labels))


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
