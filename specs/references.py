"""What the parts of a spec say about each other: stages by name, axes by label, paths by key.

Checked on the raw data, so that these problems are reported together with those of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from specs.assign import NoSuchPath, assign, resolve, value_at
from specs.expand import teacher_paths
from specs.labels import label
from specs.problems import Locate, Problem, SpecPath, dotted, listed, nearest, problem_at
from specs.strategy import Resolver
from specs.translate import UNKNOWN_KEY
from specs.validation import parse

FIXED = ("name", "description", "matrix", "resources", "search", "storage", "tracking")
"""Parts of a spec that are the same for all combinations, so that no axis can assign to them."""


def stage_problems(data: Mapping[str, Any], locate: Locate) -> Iterator[Problem]:
    """Stages that are named twice, and references to stages that are not there, or not yet."""
    stages = data.get("stages")
    stages = stages if isinstance(stages, list) else []
    names = [value_at(stage, ("name",)) for stage in stages]
    for i, stage in enumerate(stages):
        if isinstance(names[i], str) and names[i] in names[:i]:
            path: SpecPath = ("stages", i, "name")
            message = f"two stages are named `{names[i]}`"
            yield problem_at(locate(path), path, message, way_out="Give each stage its own name.")
        for source in (("init",), *teacher_paths(stage)):
            reference = value_at(stage, (*source, "stage"))
            if isinstance(reference, str) and reference not in names[:i]:
                yield _no_stage(("stages", i, *source, "stage"), reference, names[:i], names, locate)
    for source in teacher_paths(data):
        teacher = value_at(data, (*source, "stage"))
        if isinstance(teacher, str) and teacher not in names:
            yield _no_stage((*source, "stage"), teacher, names, names, locate)
    for axis_name, axis in _mapping(value_at(data, ("matrix", "axes"))).items():
        reference = value_at(axis, ("stage",))
        if isinstance(reference, str) and reference not in names:
            yield _no_stage(("matrix", "axes", axis_name, "stage"), reference, names, names, locate)


def _no_stage(path: SpecPath, name: str, allowed: list[Any], names: list[Any], locate: Locate) -> Problem:
    known = [other for other in allowed if isinstance(other, str)]
    if name in names:
        message = f"`{name}` is not before this stage"
        way_out = f"Stages run in order; those before it: {listed(known)}. Move one of the two."
    else:
        message = f"there is no stage `{name}`"
        way_out = f"Stages that can stand here: {listed(known)}."
    return problem_at(locate(path), path, message, nearest=nearest(name, known), way_out=way_out)


def label_problems(data: Mapping[str, Any], locate: Locate) -> Iterator[Problem]:
    """Axes with two values of one label, and `exclude` and `include` entries that name no axis or no label."""
    axes: dict[str, list[str]] = {}
    for name, axis in _mapping(value_at(data, ("matrix", "axes"))).items():
        axes[name] = []
        for kind, values in ((k, value_at(axis, (k,))) for k in ("strategies", "set", "values", "seeds")):
            for i, value in enumerate(values if isinstance(values, (list, Mapping)) else ()):
                if label(value) in axes[name]:
                    path = ("matrix", "axes", name, kind, i)
                    yield problem_at(
                        locate(path), path, f"`{label(value)}` occurs twice", way_out="Remove one of them."
                    )
                axes[name].append(label(value))
    seeds = {name for name in axes if isinstance(value_at(data, ("matrix", "axes", name, "seeds")), list)}
    for what in ("exclude", "include"):
        entries = value_at(data, ("matrix", what))
        for i, entry in enumerate(entries if isinstance(entries, list) else ()):
            yield from _entry_problems(("matrix", what, i), _mapping(entry), axes, seeds, locate)


def _entry_problems(
    path: SpecPath, entry: Mapping[str, Any], axes: Mapping[str, list[str]], seeds: set[str], locate: Locate
) -> Iterator[Problem]:
    include = path[1] == "include"
    for name, value in entry.items():
        here = (*path, name)
        if name not in axes:
            way_out = f"The axes are: {listed(axes)}."
            yield problem_at(
                locate(here), here, f"there is no axis `{name}`", nearest=nearest(name, axes), way_out=way_out
            )
        elif include and name in seeds:
            message = f"`{name}` is an axis of seeds; an included combination runs with all of them"
            yield problem_at(locate(here), here, message, way_out="Remove this line.")
        elif label(value) not in axes[name]:
            message = f"the axis `{name}` has no label `{label(value)}`"
            way_out = f"Its labels are: {listed(axes[name])}."
            near = nearest(label(value), axes[name])
            yield problem_at(locate(here), here, message, nearest=near, way_out=way_out)
    if not entry:
        way_out = "Write axis names with their labels, or remove the entry."
        yield problem_at(locate(path), path, "names no axis", way_out=way_out)
    absent = [name for name in axes if name not in entry and name not in seeds]
    if include and entry and absent:
        message = f"says nothing of {listed(absent)}"
        way_out = "An included combination needs a label for every axis (except seeds)."
        yield problem_at(locate(path), path, message, way_out=way_out)


def assignment_problems(data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> Iterator[Problem]:
    """Axes that assign to places that specs do not have, or values that do not fit there.

    Each value is assigned alone and validated. Reported is what is certainly wrong: problems at the assigned place
    or on the way to it. Whether values of several axes fit each other, the plan decides.
    """
    base = {**data, "matrix": {}}
    for name, axis in _mapping(value_at(data, ("matrix", "axes"))).items():
        here: SpecPath = ("matrix", "axes", name)
        path, values = value_at(axis, ("path",)), value_at(axis, ("values",))
        if isinstance(path, str) and isinstance(values, list):
            for i, value in enumerate(values):
                places = {path: ((*here, "path"), (*here, "values", i))}
                problems = list(assigned_problems(base, {path: value}, places, resolver, locate))
                yield from problems
                if any(problem.path == dotted((*here, "path")) for problem in problems):
                    break
        for row, assignments in _mapping(value_at(axis, ("set",))).items():
            wanted = dict(_mapping(assignments))
            places = {path: ((*here, "set", row, path),) * 2 for path in wanted}
            yield from assigned_problems(base, wanted, places, resolver, locate)


def assigned_problems(
    base: Mapping[str, Any],
    assignments: Mapping[str, Any],
    places: Mapping[str, tuple[SpecPath, SpecPath]],
    resolver: Resolver,
    locate: Locate,
) -> Iterator[Problem]:
    """Problems of some assignments made together; `places` says where the path and the value of each is written."""
    data, targets = dict(base), {}
    for path, value in assignments.items():
        where = places[path][0]
        try:
            target = resolve(data, path)
            data = assign(data, path, value)
        except NoSuchPath as error:
            yield problem_at(locate(where), where, str(error.args[0]), nearest=error.nearest)
            continue
        if target[0] in FIXED:
            message = f"`{target[0]}` is the same for all combinations; an axis cannot assign to it"
            yield problem_at(locate(where), where, message, way_out="Write one spec for each, with `extends`.")
        else:
            targets[path] = dotted(target)
    _, problems = parse(data, resolver, lambda path: locate(()))
    for problem in problems:
        for path, target_path in targets.items():
            on_the_way = problem.message.startswith(UNKNOWN_KEY) and _inside(target_path, problem.path)
            if on_the_way or _inside(problem.path, target_path):
                where = places[path][0 if on_the_way else 1]
                place = locate(where)
                message = f"`{problem.path}`: {problem.message}"
                yield problem._replace(file=place.file, line=place.line, path=dotted(where), message=message)


def _inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + ".")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
