"""Assign to one place of a spec by its dotted path, as `--set` and the axes of the matrix do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specs.problems import SpecPath, dotted, listed, nearest


class NoSuchPath(ValueError):
    """A path that cannot exist in this spec.

    Attributes:
        nearest: the nearest name that does exist where the path goes wrong, or `None`.
    """

    def __init__(self, message: str, near: str | None = None) -> None:
        super().__init__(message, near)
        self.nearest = near

    def __str__(self) -> str:
        return f"{self.args[0]}; did you mean `{self.nearest}`?" if self.nearest else str(self.args[0])


def resolve(data: Mapping[str, Any], path: str) -> SpecPath:
    """Keys and indices that a dotted path means in this spec.

    An item is a key of a mapping, or an index or an entry's `name` in a list (`stages.train.training.epochs`). Names
    that contain dots are found too: the longest existing one wins. Keys that do not exist yet are taken as they are.

    Raises:
        NoSuchPath: if the path runs into text or a number, past the end of a list, or to a name the list lacks.
    """
    rest = path.split(".")
    if not all(rest):
        raise NoSuchPath(
            f"`{path}` is no path; items are joined by single dots, for example `stages.0.training.epochs`"
        )
    here: Any = data
    done: tuple[str | int, ...] = ()
    while rest:
        if here is None or isinstance(here, Mapping):
            known = list(here or {})
            item, used = next(
                ((key, n) for n in range(len(rest), 0, -1) if (key := ".".join(rest[:n])) in known), (rest[0], 1)
            )
            here = (here or {}).get(item)
            done = (*done, item)
        elif isinstance(here, Sequence) and not isinstance(here, str):
            index, used = _entry(here, rest, done)
            here = here[index]
            done = (*done, index)
        else:
            kind = "text" if isinstance(here, str) else "a number or a switch"
            raise NoSuchPath(f"`{dotted(done)}` is {kind} and has no `{rest[0]}` inside")
        rest = rest[used:]
    return done


def _entry(entries: Sequence[Any], rest: Sequence[str], done: SpecPath) -> tuple[int, int]:
    """Index of a list's entry, and how many items of the path it took."""
    where = dotted(done)
    if rest[0].isascii() and rest[0].isdigit():
        if len(rest[0]) < 10 and int(rest[0]) < len(entries):
            return int(rest[0]), 1
        count = len(entries)
        has = "is empty" if count == 0 else "has only entry 0" if count == 1 else f"has entries 0 to {count - 1}"
        raise NoSuchPath(f"`{where}` {has}, not {rest[0]}")
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in entries]
    for n in range(len(rest), 0, -1):
        if (name := ".".join(rest[:n])) in names:
            return names.index(name), n
    known = [name for name in names if isinstance(name, str)]
    raise NoSuchPath(
        f"`{where}` has no entry named `{rest[0]}`; its entries are: {listed(known)}", nearest(rest[0], known)
    )


def assign(data: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the spec with one value replaced; only what lies on the path is copied.

    Missing mappings on the way are created, so `stages.0.training.optimizer.lr` works where the spec names no
    optimiser. Whether the key is one that specs have is for validation to say.

    Raises:
        NoSuchPath: a `ValueError`, see `resolve`.
    """
    result = _assigned(data, resolve(data, path), value)
    assert isinstance(result, dict)
    return result


def _assigned(here: Any, path: SpecPath, value: Any) -> Any:
    if not path:
        return value
    item, rest = path[0], path[1:]
    if isinstance(item, int):
        return [_assigned(entry, rest, value) if i == item else entry for i, entry in enumerate(here)]
    mapping = dict(here or {})
    mapping[item] = _assigned(mapping.get(item), rest, value)
    return mapping


def holds(data: Any, item: str | int) -> bool:
    """Whether this is a mapping with this key, or a list with this index."""
    if isinstance(data, Mapping):
        return item in data
    return isinstance(data, list) and isinstance(item, int) and item < len(data)


def value_at(data: Any, path: SpecPath) -> Any:
    """Value at a path, or `None` if the path leads nowhere."""
    for item in path:
        if not holds(data, item):
            return None
        data = data[item]
    return data
