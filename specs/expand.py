"""`~` and `${VARIABLE}` in the fields of a spec that hold paths and addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from specs.assign import value_at
from specs.problems import SpecPath, nearest

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class UnsetVariable(ValueError):
    """A text names an environment variable that is not set.

    Attributes:
        nearest: the nearest variable that is set, or `None`.
        way_out: what to do.
    """

    def __init__(self, variable: str) -> None:
        super().__init__(f"the environment variable `{variable}` is not set")
        self.nearest = nearest(variable, os.environ) if variable else None
        self.way_out = (
            f"Set it, for example `export {variable}=…`, or write the path itself."
            if variable
            else ("Put the name of a variable between the braces.")
        )


def expand(text: str) -> str:
    """The text with its variables and a leading `~` filled in (after `sqlite:///` too).

    Raises:
        UnsetVariable: if a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UnsetVariable(match[1])
        return os.environ[match[1]]

    filled = _VARIABLE.sub(value, text)
    scheme = "sqlite:///" if filled.startswith("sqlite:///~") else ""
    return scheme + os.path.expanduser(filled.removeprefix(scheme))


def variables(text: str) -> list[str]:
    """Names of the environment variables in a text."""
    return _VARIABLE.findall(text)


def path_fields(data: Mapping[str, Any]) -> Iterator[SpecPath]:
    """Paths of all fields of a (not yet validated) spec that hold a file path or an address."""
    candidates: list[SpecPath] = [("data", "root"), ("data", "endpoint"), ("storage", "root")]
    candidates += [("storage", "endpoint"), ("tracking", "uri"), ("cluster", "ssh_private_key")]
    candidates += [(*teacher, "checkpoint") for teacher in teacher_paths(data)]
    stages = data.get("stages")
    for i in range(len(stages) if isinstance(stages, list) else 0):
        sources: list[SpecPath] = [("init",), *teacher_paths(value_at(data, ("stages", i)))]
        candidates += [("stages", i, *source, "checkpoint") for source in sources]
    for path in candidates:
        if isinstance(value_at(data, path), str):
            yield path


def teacher_paths(data: Any) -> list[SpecPath]:
    """Where the teachers of a stage, or of the experiment, stand in its (not yet validated) data."""
    also = value_at(data, ("teacher", "also"))
    further: list[SpecPath] = [("teacher", "also", i) for i in range(len(also) if isinstance(also, list) else 0)]
    return [("teacher",), *further]
