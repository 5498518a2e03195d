"""Answers to queries, effects and claims as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from orchestrator.reporting.comparison import ClaimResult, Comparison, Effect
from orchestrator.reporting.query import Answer, Ranking
from orchestrator.reporting.table import WIDE, number, spread, title
from specs.words import counted

_VERDICTS = {True: "holds", False: "does not hold", None: "cannot be told"}


def answer_text(answer: Answer, comparison: Comparison) -> str:
    """Which combinations satisfy a query, best first; or what came nearest."""
    asked = f" with {answer.where}" if answer.where else ""
    lines: list[str] = []
    if not answer.rankings:
        lines.append(f"No combination{asked}.")
        if answer.nearest:
            lines.append(f"Nearest: `{answer.nearest.combination}`, which fails {' and '.join(answer.nearest.failed)}.")
    elif len(answer.rankings) > 1:
        lines.append(
            "The combinations fall into groups measured under different conditions; each group is ranked by itself."
        )
    for ranking in answer.rankings:
        letters = ", ".join(f"{key} [{letter}]" for key, letter in ranking.conditions.items())
        count = counted(len(ranking.hits), "combination")
        lines.append(f"{count}{asked}, by {answer.best}{f', conditions {letters}' if letters else ''}:")
        lines += ["", _hits(ranking, answer, comparison).rstrip("\n"), ""]
        lines += [ranking.lead] if ranking.lead else []
    lines += [f"Not judged: {name}: {why}." for name, why in answer.left_out.items()]
    if any(ranking.conditions for ranking in answer.rankings):
        lines += [f"Note: {note}" for note in comparison.notes]
    return "\n".join(lines) + "\n"


def effects_text(comparison: Comparison) -> str:
    """Main effects, then for each pair of labels what one does on top of the other."""
    columns = [comparison.column(key) for key in dict.fromkeys(e.column for e in comparison.effects)]
    if not columns:
        return (
            "There is no effect to show: that takes an axis with two labels, and two measured combinations that differ "
            "in nothing else.\n"
        )
    table = Table(pad_edge=False, box=None)
    table.add_column("effect of", overflow="fold")
    for column in columns:
        table.add_column(f"{title(column)}\n({'points' if column.unit == '%' else 'change in %'})", justify="right")
    by_choice: dict[tuple[tuple[str, str], ...], dict[str, Effect]] = {}
    for e in comparison.effects:
        by_choice.setdefault(tuple(e.labels.items()), {})[e.column] = e
    for choice, found in by_choice.items():
        for text, values in _effect_lines(choice, found):
            table.add_row(text, *(values.get(c.key, "–") for c in columns))
    return (
        f"{comparison.experiment}: effects, each a mean over all pairs of runs that differ in nothing else ± standard "
        f"error over seeds\n\n{_plain(table)}"
    )


def claim_text(result: ClaimResult) -> str:
    """Each part of a claim, and whether it holds."""
    best = f"the most accurate is `{result.combination}`" if result.combination else "there is no candidate"
    lines = [f"Claim: {result.text}", f"Of the combinations with {result.budget}, {best}."]
    for part in result.parts:
        value = f" (measured: {part.value:.6g})" if part.value is not None else ""
        reason = f"; {part.reason}" if part.reason else ""
        lines.append(f"  {part.text}: {_VERDICTS[part.holds]}{value}{reason}")
    return "\n".join(lines) + "\n"


def _hits(ranking: Ranking, answer: Answer, comparison: Comparison) -> str:
    columns = [comparison.column(key) for key in answer.columns]
    cells = {r.name: r.cells for r in comparison.rows}
    table = Table(pad_edge=False, box=None)
    table.add_column("combination", overflow="fold")
    for column in columns:
        table.add_column(title(column), justify="right")
    for hit in ranking.hits:
        texts = []
        for column in columns:
            cell = cells[hit.combination][column.key]
            text = number(hit.values[column.key], column.unit, column.metric)
            texts.append(f"{text} ± {spread(cell.std, column)}" if cell.std else text)
        table.add_row(hit.combination, *texts)
    return _plain(table)


def _effect_lines(choice: Sequence[tuple[str, str]], found: dict[str, Effect]) -> Iterable[tuple[str, dict[str, str]]]:
    names = [f"{axis}={label}" for axis, label in choice]
    any_effect = next(iter(found.values()))
    if len(choice) == 1:
        against = any_effect.against[choice[0][0]]
        yield f"{names[0]} (not {against})", {key: _signed(e.value, e.std_error) for key, e in found.items()}
        return
    for (axis, _), name, other in zip(choice, names, reversed(names), strict=True):
        yield f"{name} without {other}", {key: _signed(e.alone[axis]) for key, e in found.items()}
        yield f"{name} on top of {other}", {key: _signed(e.on_top(axis)) for key, e in found.items()}
    yield f"{names[0]} × {names[1]} (interaction)", {k: _signed(e.value, e.std_error) for k, e in found.items()}


def _signed(value: float, error: float | None = None) -> str:
    return f"{value:+.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _plain(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDE, color_system=None, force_terminal=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
