r"""The comparison as a LaTeX table for papers; needs the package `booktabs`."""

from __future__ import annotations

from orchestrator.reporting.comparison import Cell, Column, Comparison, Row
from orchestrator.reporting.table import number, shown_columns, spread, title

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
}
_OPTIMAL = r"$\blacklozenge$"


def to_latex(comparison: Comparison) -> str:
    r"""A `table` with the columns of the terminal's table; best values bold, ± over seeds, ratios to the baseline.

    Pareto-optimal rows are marked by `\blacklozenge` (package `amssymb`); a `?` marks unreliable values, a letter the
    conditions where they differ.
    """
    columns = shown_columns(comparison)
    head = ["", "combination", *(title(c) + (" (× baseline)" if c.ratio else "") for c in columns)]
    lines = [
        r"% \usepackage{booktabs,amssymb}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(comparison)}}}",
        rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in comparison.experiment)}}}",
        rf"\begin{{tabular}}{{@{{}}ll{'r' * len(columns)}@{{}}}}",
        r"\toprule",
        " & ".join(escape(text) for text in head) + r" \\",
        r"\midrule",
        *(" & ".join(_line(r, columns)) + r" \\" for r in comparison.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in comparison.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _line(r: Row, columns: list[Column]) -> list[str]:
    cells = [_value(r.cells[c.key], c, r.cells[c.ratio] if c.ratio else None) for c in columns]
    return [_OPTIMAL if r.pareto else "", escape(r.name), *cells]


def _value(cell: Cell, column: Column, ratio: Cell | None) -> str:
    if cell.value is None:
        return "--"
    text = escape(number(cell.value, column.unit, column.metric))
    if cell.best:
        text = rf"\textbf{{{text}}}"
    if cell.std:
        text += rf" $\pm$ {escape(spread(cell.std, column))}"
    if ratio is not None and ratio.value is not None:
        text += rf" ({ratio.value:.2f}$\times$)"
    if cell.unreliable:
        text += " ?"
    return text + (f" [{cell.group}]" if len(column.groups) > 1 else "")


def _caption(comparison: Comparison) -> str:
    said = escape(comparison.experiment) + "."
    if comparison.quality and comparison.cost:
        said += f" {_OPTIMAL} Pareto-optimal in {escape(comparison.quality)} against {escape(comparison.cost)}."
    if any(cell.std for r in comparison.rows for cell in r.cells.values()):
        said += r" $\pm$ sample standard deviation over seeds."
    if any(cell.unreliable for r in comparison.rows for cell in r.cells.values()):
        said += " ? unreliable."
    return said
