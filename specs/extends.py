"""`extends`: a spec as what another spec says, plus the differences."""

from __future__ import annotations

import os
from pathlib import Path

from specs.expand import UnsetVariable, expand
from specs.problems import Problem, problem_at
from specs.yaml_source import Node, missing_file, read_yaml

KEY = "extends"


def read_merged(path: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> Node | None:
    """Read a spec file and everything it extends, merged; what is wrong is appended to `problems`.

    `extends` is a path or a list of paths, relative to the file that names them; later ones win over earlier ones, and
    the file itself wins over all. Merging is described at `merge`.

    Returns:
        The merged top mapping, or `None` if a file could not be read.
    """
    top = read_yaml(path, problems)
    if top is None:
        return None
    assert isinstance(top.value, dict)
    entry = top.value.get(KEY)
    if entry is None:
        return top
    own = Node({key: child for key, child in top.value.items() if key != KEY}, top.location)
    entries = entry.value if isinstance(entry.value, list) else [entry]
    merged: Node | None = None
    complete = True
    for i, base in enumerate(entries):
        at = (KEY, i) if isinstance(entry.value, list) else (KEY,)
        if not isinstance(base.value, str) or not base.value:
            message = "`extends` takes the path of a spec, or a list of paths"
            problems.append(
                problem_at(base.location, at, message, way_out="For example `extends: ../quickstart.yaml`.")
            )
            complete = False
            continue
        node = _read_base(base, at, path, problems, (*chain, path.resolve()))
        complete = complete and node is not None
        merged = node if merged is None or node is None else merge(merged, node)
    if not complete:
        return None
    return own if merged is None else merge(merged, own)


def _read_base(
    base: Node, at: tuple[str | int, ...], path: Path, problems: list[Problem], chain: tuple[Path, ...]
) -> Node | None:
    assert isinstance(base.value, str)
    try:
        target = Path(os.path.normpath(path.parent / expand(base.value)))
    except UnsetVariable as error:
        problems.append(problem_at(base.location, at, str(error), nearest=error.nearest, way_out=error.way_out))
        return None
    if target.resolve() in chain:
        names = [*(p.name for p in chain[chain.index(target.resolve()) :]), target.name]
        message = f"specs extend one another in a circle: {' → '.join(names)}"
        problems.append(problem_at(base.location, at, message, way_out="Remove one of these `extends`."))
        return None
    if not os.path.exists(target):
        near = missing_file(target).nearest
        message = f"extends `{base.value}`, but there is no file {target}"
        way_out = "The path counts from the folder of the file that extends."
        problems.append(problem_at(base.location, at, message, nearest=near, way_out=way_out))
        return None
    return read_merged(target, problems, chain)


def merge(base: Node, over: Node, path: tuple[str, ...] = ()) -> Node:
    """What `base` says, changed by what `over` says.

    * Mappings merge key by key, at every depth; but where both name a `kind` and the kinds differ, and where `over` is
      tagged `!replace`, `over` takes the place of `base`.
    * The list `stages` merges by `name`: a stage that both have is merged, a new one is put before the next stage that
      both have, or at the end.
    * Every other list, and every single value (`null` too), is replaced.
    """
    if over.replace:
        return over
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        if _differ(base.value.get("kind"), over.value.get("kind")):
            return over
        entries = dict(base.value)
        for key, child in over.value.items():
            entries[key] = merge(entries[key], child, (*path, key)) if key in entries else child
        return Node(entries, over.location, base.replace)
    if isinstance(base.value, list) and isinstance(over.value, list) and path == ("stages",):
        return Node(_merge_stages(base.value, over.value), over.location, base.replace)
    return over


def _differ(one: Node | None, other: Node | None) -> bool:
    return one is not None and other is not None and one.value != other.value


def _merge_stages(base: list[Node], over: list[Node]) -> list[Node]:
    result = list(base)
    new: list[Node] = []
    for stage in over:
        name = _name(stage)
        place = next((i for i, other in enumerate(result) if name is not None and _name(other) == name), None)
        if place is None:
            new.append(stage)
            continue
        result[place] = merge(result[place], stage)
        result[place:place] = new
        new = []
    return result + new


def _name(stage: Node) -> object:
    entry = stage.value.get("name") if isinstance(stage.value, dict) else None
    return entry.value if entry is not None and isinstance(entry.value, str) else None
