"""JSON Schema of spec files, so that editors complete and check them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from specs.experiment import Experiment
from specs.strategy import StrategyConfig

_EXTENDS = {
    "description": "Spec, or list of specs, that this one extends; relative to this file. Later ones win.",
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}],
}


def json_schema(strategy_types: Iterable[type[StrategyConfig]]) -> dict[str, Any]:
    """Schema of a spec file in which these strategies are known.

    A file with `extends` says only what differs, so nothing but the names of strategies is required in it.
    """
    options = list(strategy_types)
    models: list[type[BaseModel]] = [Experiment, *options]
    references, collected = models_json_schema([(model, "validation") for model in models])
    definitions: dict[str, Any] = _with_strategies(collected["$defs"])
    definitions["AnyStrategy"] = _any_strategy(options, references, definitions)
    name = references[(Experiment, "validation")]["$ref"].rpartition("/")[2]
    whole = definitions.pop(name)
    differences = {f"{key}Difference": _difference(value) for key, value in definitions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "slimvit spec",
        "description": whole.get("description", ""),
        "type": "object",
        "if": {"required": ["extends"]},
        "then": _with_extends(_difference(whole)),
        "else": whole,
        "$defs": {**definitions, **differences},
    }


def _any_strategy(options: list[type[StrategyConfig]], references: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """One of the registered strategies, told apart by `name`."""
    if not options:
        return {"type": "object", "required": ["name"]}
    mapping: dict[str, str] = {}
    for model in options:
        reference = references[(model, "validation")]["$ref"]
        definition = definitions[reference.rpartition("/")[2]]
        name = definition["properties"]["name"]["const"]
        definition["title"] = name
        definition["required"] = ["name", *(key for key in definition.get("required", []) if key != "name")]
        mapping[name] = reference
    return {
        "description": "A strategy: its `name` and its options.",
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "name", "mapping": mapping},
    }


def _with_strategies(schema: Any) -> Any:
    """The same schema with references where `specs.strategy.AnyStrategy` left its place."""
    if isinstance(schema, list):
        return [_with_strategies(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("title") == "AnyStrategy":
        return {"$ref": "#/$defs/AnyStrategy"}
    return {key: _with_strategies(value) for key, value in schema.items()}


def _with_extends(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "properties": {"extends": _EXTENDS, **schema["properties"]}}


def _difference(schema: Any) -> Any:
    """The same schema for a file that extends another: no key is required but those that tell kinds apart."""
    if isinstance(schema, list):
        return [_difference(item) for item in schema]
    if isinstance(schema, str) and schema.startswith("#/$defs/"):
        return f"{schema}Difference"
    if not isinstance(schema, dict):
        return schema
    result = {key: _difference(value) for key, value in schema.items() if key != "required"}
    kept = [key for key in schema.get("required", []) if key in ("name", "kind")]
    if kept and "properties" in schema and "const" in schema["properties"][kept[0]]:
        result["required"] = kept
    return result
