"""Values on the command line: `KEY=VALUE` pairs in YAML, strategies as `NAME:KEY=VALUE,…`, conditions, choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.errors import UsageError
from specs.measurement import MeasurementSpec
from specs.problems import Location, Problem, SpecPath, SpecProblems, listed, nearest
from specs.strategy import Resolver, StrategyConfig
from specs.validation import parse_measurement, parse_strategy
from specs.yaml_source import parse_value, plain

_LISTS = tuple(name for name, value in MeasurementSpec().model_dump().items() if isinstance(value, list))
"""Conditions that hold several values."""


def pairs(texts: Iterable[str], option: str) -> dict[str, Any]:
    """`KEY=VALUE` texts as a mapping.

    Raises:
        UsageError: if a text has no `=`, a key occurs twice, or a value is not valid YAML.
    """
    result: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise UsageError(f"{option} {text}: is no assignment; write `{option} KEY=VALUE`")
        if key in result:
            raise UsageError(f"{option} {text}: `{key}` is given twice; keep one of them")
        problems: list[Problem] = []
        node = parse_value(value, f"{option} {text}", problems, lines=False)
        if problems or node is None:
            raise UsageError(str(SpecProblems(problems)))
        result[key] = plain(node)
    return result


def strategy(text: str, resolver: Resolver, option: str = "--strategy") -> StrategyConfig:
    """`NAME` or `NAME:KEY=VALUE,KEY=VALUE` as a strategy's options.

    Raises:
        UsageError: as `pairs` does.
        SpecProblems: if there is no such strategy, or the options are not its own.
    """
    name, _, rest = text.partition(":")
    data = {"name": name.strip(), **pairs(split(rest), option)}
    return parse_strategy(data, resolver, lambda path: Location(f"{option} {text}"))


def conditions(texts: Iterable[str], option: str = "--conditions") -> dict[str, Any]:
    """`KEY=VALUE,…` texts as conditions of measurement, still to be validated.

    Lists are written `batch_sizes=1;64`, or by repeating their key.

    Raises:
        UsageError: if a text has no `=`, a value is not valid YAML, or a key that holds one value is repeated.
    """
    result: dict[str, Any] = {}
    for assignment in (part for text in texts for part in split(text)):
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if key not in _LISTS:
            result |= _one_more(result, pairs([assignment], option), option)
            continue
        for entry in value.split(";") if equals else [""]:
            (parsed,) = pairs([f"{key}{equals}{entry}"], option).values()
            result[key] = result.get(key, []) + (parsed if isinstance(parsed, list) else [parsed])
    return result


def _one_more(known: Mapping[str, Any], new: dict[str, Any], option: str) -> dict[str, Any]:
    for key in new:
        if key in known:
            raise UsageError(f"{option}: `{key}` is given twice; keep one of them")
    return new


def measured_under(changes: Mapping[str, Any], base: MeasurementSpec) -> MeasurementSpec:
    """Conditions with some of them changed.

    Raises:
        SpecProblems: if there is no such condition or value; names the nearest.
    """
    data = {**base.model_dump(mode="json"), **changes}

    def locate(path: SpecPath) -> Location:
        return Location("--conditions")

    return parse_measurement(data, locate)


def split(text: str) -> list[str]:
    """Split at the commas that are in no bracket, brace or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def chosen(texts: Iterable[str], known: Iterable[str], option: str) -> list[str]:
    """Comma-separated names, each one of the known ones.

    Raises:
        UsageError: with the nearest name.
    """
    allowed = list(known)
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in allowed:
            near = nearest(name, allowed)
            advice = f"did you mean `{near}`? " if near else ""
            raise UsageError(f"{option}: there is no `{name}`; {advice}Known: {listed(allowed)}")
    return names
