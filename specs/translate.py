"""Pydantic's errors as located problems in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from specs.assign import holds, value_at
from specs.experiment import Experiment
from specs.fields import field_at, first_sentence, kinds_at, model_at, paths_of
from specs.problems import Locate, Problem, SpecPath, listed, nearest, problem_at
from specs.strategy import Resolver

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "bool_parsing": "`true` or `false`",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "`null`",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
}
"""What a value must be, by pydantic's error type."""

UNKNOWN_KEY = "unknown key"
"""How the message of a key that does not exist begins."""

_YAML_11_SWITCHES = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def translate(
    error: ValidationError, data: Mapping[str, Any], resolver: Resolver, locate: Locate, top: Any = Experiment
) -> list[Problem]:
    """Every error of a failed validation as a problem; the members of a union that all failed become one.

    Args:
        top: type that `data` was validated as.
    """
    translator = _Translator(data, resolver, locate, top)
    groups: dict[tuple[Any, ...], list[tuple[SpecPath, ErrorDetails]]] = {}
    for i, details in enumerate(error.errors(include_url=False)):
        path, union = raw_path(details["loc"], data)
        groups.setdefault(("alone", i) if union is None else ("union", *union), []).append((path, details))
    return [translator.problem(*group[0]) if len(group) == 1 else translator.union(group) for group in groups.values()]


def raw_path(loc: tuple[str | int, ...], data: Any) -> tuple[SpecPath, SpecPath | None]:
    """Where in the spec pydantic's location is.

    Pydantic inserts the tags of unions and `[key]` for keys of mappings; the spec has neither.

    Returns:
        The path, and the path of the innermost union whose members were tried one by one, or `None`.
    """
    path: list[str | int] = []
    union: SpecPath | None = None
    here = data
    for i, item in enumerate(loc):
        if holds(here, item):
            here = here[item]
        elif isinstance(here, Mapping) and item in here.values():
            continue  # the tag of a discriminated union
        elif isinstance(here, Mapping) and i == len(loc) - 1 and isinstance(item, str) and item.isidentifier():
            pass  # a key that is missing
        elif item == "[key]":
            continue
        else:
            union = tuple(path)
            continue
        path.append(item)
    return tuple(path), union


class _Translator:
    """Knows the spec that the errors are about."""

    def __init__(self, data: Mapping[str, Any], resolver: Resolver, locate: Locate, top: Any) -> None:
        self.data, self.resolver, self.locate, self.top = data, resolver, locate, top

    def union(self, group: list[tuple[SpecPath, ErrorDetails]]) -> Problem:
        """One problem for a value that fits no member of a union.

        The member that got furthest tells most: the one whose error lies deepest, then one that took the type but not
        the value. If there is none, all members together say what the value must be.
        """
        depth = max(len(path) for path, _ in group)
        deepest = [entry for entry in group if len(entry[0]) == depth]
        if len(deepest) < len(group):
            return self.problem(*deepest[0])
        particular = [entry for entry in group if not entry[1]["type"].endswith(("_type", "_parsing", "literal_error"))]
        if particular:
            return self.problem(*particular[0])
        path = group[0][0]
        wanted = dict.fromkeys(self.wanted(details) for _, details in group)
        return self.wrong(path, " or ".join(wanted))

    def problem(self, path: SpecPath, details: ErrorDetails) -> Problem:
        """The problem behind one error."""
        kind, context = details["type"], details.get("ctx", {})
        if kind == "missing":
            return self.missing(path)
        if kind == "extra_forbidden":
            return self.unknown_key(path)
        if kind == "union_tag_invalid":
            return self.wrong_kind(path)
        if kind == "union_tag_not_found":
            known = kinds_at(path, self.data, self.resolver)
            return self.at(path, "`kind` is missing", way_out=f"Write `kind:` and one of {listed(known)}.")
        if kind == "literal_error":
            return self.wrong(path, self.wanted(details), near=nearest(value_at(self.data, path), _choices(details)))
        if kind == "string_too_short" and context.get("min_length") == 1:
            return self.at(path, "must not be empty", way_out=self.meaning(path))
        if kind in ("string_too_short", "string_too_long"):
            limit = "at least" if kind == "string_too_short" else "at most"
            length = context.get("min_length", context.get("max_length"))
            return self.at(path, f"must have {limit} {length} characters", way_out=self.meaning(path))
        if kind in ("too_short", "too_long"):
            limit, bound = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
            number, actual = context[bound], context["actual_length"]
            entries = "entry" if number == 1 else "entries"
            return self.at(path, f"needs {limit} {number} {entries}, has {actual}", way_out=self.meaning(path))
        if kind == "string_pattern_mismatch":
            name = details["input"]
            message = f"the name {shown(name)} holds characters that names do not have"
            return self.at(
                path, message, way_out="Use letters, digits, `_`, `.` and `-`, and begin with a letter or digit."
            )
        if kind == "strategy_unknown":
            return self.unknown_strategy(path, str(context["reason"]))
        if kind == "strategy_form":
            return self.at(path, details["msg"], way_out="`slimvit strategies` lists the names.")
        if kind == "value_error":
            return self.at(path, str(context.get("error", details["msg"])))
        return self.wrong(path, self.wanted(details))

    def wanted(self, details: ErrorDetails) -> str:
        """What the value had to be."""
        if details["type"] == "literal_error":
            choices = _choices(details)
            return f"`{choices[0]}`" if len(choices) == 1 else f"one of {listed(choices)}"
        words = _WANTED.get(details["type"])
        return words.format(**details.get("ctx", {})) if words else f"otherwise ({details['msg']})"

    def wrong(self, path: SpecPath, wanted: str, near: str | None = None) -> Problem:
        """A value that is not what it must be."""
        value = value_at(self.data, path)
        message = f"must be {wanted}, but is {shown(value)}"
        hint = ""
        if isinstance(value, str) and "number" in wanted and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
            hint = "Remove the quotes."
        elif isinstance(value, str) and "`true`" in wanted and value.lower() in _YAML_11_SWITCHES:
            hint = f"Write `{_YAML_11_SWITCHES[value.lower()]}`."
        elif value is None:
            hint = "Give a value, or remove the key to get its default."
        elif wanted == "text" and not isinstance(value, (list, dict)):
            hint = "Put it in quotes."
        return self.at(path, message, near=near, way_out=" ".join(part for part in (hint, self.meaning(path)) if part))

    def missing(self, path: SpecPath) -> Problem:
        """A key that must be there and is not."""
        place, name = self.locate(path[:-1]), path[-1]
        return problem_at(place, path, f"`{name}` is missing", way_out=f"Add it. {self.meaning(path)}".strip())

    def unknown_key(self, path: SpecPath) -> Problem:
        """A key that this mapping does not have."""
        name = str(path[-1])
        model = model_at(path[:-1], self.data, self.resolver, self.top)
        known = list(model.model_fields) if model else []
        below = [p for p in paths_of(model) if p.rpartition(".")[2] == name] if model else []
        anywhere = [p for p in paths_of(Experiment) if p.rpartition(".")[2] == name]
        near = below[0] if below else nearest(name, known)
        way_out = f"Known keys here: {listed(known)}." if known else "Remove it."
        if near is None and anywhere:
            way_out = f"A key of that name belongs at `{anywhere[0]}`. {way_out}"
        if name == "extends":
            way_out = "`extends` stands at the top of a file."
        return self.at(path, f"{UNKNOWN_KEY} `{name}`", near=near, way_out=way_out)

    def wrong_kind(self, path: SpecPath) -> Problem:
        """A mapping of a kind that does not exist."""
        known = kinds_at(path, self.data, self.resolver)
        kind = value_at(self.data, (*path, "kind"))
        return self.at(
            (*path, "kind"), f"must be one of {listed(known)}, but is {shown(kind)}", near=nearest(kind, known)
        )

    def unknown_strategy(self, path: SpecPath, reason: str) -> Problem:
        """A strategy that is not registered, or cannot be loaded."""
        try:
            self.resolver(value_at(self.data, (*path, "name")))
        except ValueError as error:
            near, way_out = getattr(error, "nearest", None), getattr(error, "way_out", "")
            return self.at((*path, "name"), str(error.args[0]), near=near, way_out=way_out)
        raise AssertionError(f"the resolver refused a strategy and then took it: {reason}")

    def meaning(self, path: SpecPath) -> str:
        """The field's description, as help."""
        field = field_at(path, self.data, self.resolver, self.top)
        return f"`{path[-1]}`: {first_sentence(field)}" if field and field.description else ""

    def at(self, path: SpecPath, message: str, *, near: str | None = None, way_out: str = "") -> Problem:
        return problem_at(self.locate(path), path, message, nearest=near, way_out=way_out)


def shown(value: Any) -> str:
    """A value for a message: short, and with its type where that is the point."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return "empty" if not value else f"the text `{value[:60]}…`" if len(value) > 60 else f"the text `{value}`"
    if isinstance(value, (int, float)):
        return f"`{value!r}`"
    return "a list" if isinstance(value, (list, tuple)) else "a mapping"


def _choices(details: ErrorDetails) -> list[str]:
    """Values that a literal allows, as written in YAML."""
    expected = str(details.get("ctx", {}).get("expected", ""))
    return re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)
