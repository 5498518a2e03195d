"""Located problems: everything that is wrong with a spec, each with its place and its way out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from specs.secrets import redact
from specs.words import counted

SpecPath = tuple[str | int, ...]
"""Keys and list indices from the top of a spec to one of its values."""


class Location(NamedTuple):
    """Where something is written."""

    file: str
    """The file as the user named it, or the `--set` assignment."""

    line: int | None = None
    """Line in the file, counted from 1; `None` for `--set` and for a file as a whole."""


Locate = Callable[[SpecPath], Location]
"""Gives the place of a path of the merged spec, or of its nearest ancestor that is written down."""


class Problem(NamedTuple):
    """One thing that is wrong, and what to do about it."""

    file: str
    line: int | None
    path: str
    """Dotted path in the spec; empty for the file as a whole."""
    message: str
    """What is wrong."""
    nearest: str | None = None
    """The nearest valid name, where a name is wrong."""
    way_out: str = ""
    """What to write instead."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        first = ": ".join(part for part in (place, self.path, self.message) if part)
        advice = [f"did you mean `{self.nearest}`?"] if self.nearest else []
        advice += [self.way_out] if self.way_out else []
        return redact(first + (f"\n    {' '.join(advice)}" if advice else ""))


class SpecProblems(ValueError):
    """A spec cannot be used; `problems` holds every reason, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        where = "" if all(problem.file.startswith("--") for problem in self.problems) else " in the spec"
        head = f"{counted(len(self.problems), 'problem')}{where}:"
        return "\n".join([head, *(str(problem) for problem in self.problems)])


def problem_at(
    location: Location, path: SpecPath, message: str, *, nearest: str | None = None, way_out: str = ""
) -> Problem:
    """A problem at a location."""
    return Problem(location.file, location.line, dotted(path), message, nearest, way_out)


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it: `stages.0.training.epochs`."""
    return ".".join(str(item) for item in path)


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or `None` if none is close."""
    candidates = sorted(set(known))
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(str(name).lower(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def listed(names: Iterable[str]) -> str:
    """Names in backticks for a message, at most twenty; `none` if there are none."""
    known = list(names)
    shown = ", ".join(f"`{name}`" for name in known[:20])
    return f"{shown}, … ({len(known)} in all)" if len(known) > 20 else shown or "none"
