"""Options types in words: type, default and meaning of every field, for the reference and for `slimvit strategies`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Option(NamedTuple):
    """One field of an options type."""

    name: str
    type: str
    """In words, for example `whole number ≥ 1`; names of other options types are in brackets: `[ModelSpec]`."""
    default: str
    """As YAML; `required` where there is none."""
    meaning: str


def options(model: type[BaseModel]) -> Iterator[Option]:
    """All fields of an options type, in order."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        words = type_in_words(schema["properties"][name])
        yield Option(name, words, _default(field), " ".join((field.description or "").split()))


def type_in_words(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as people say it."""
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2]}]"
    if schema.get("title") == "AnyStrategy":
        return "[AnyStrategy]"
    if "const" in schema:
        return f"`{as_yaml(schema['const'])}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{as_yaml(value)}`" for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return ", or ".join(dict.fromkeys(type_in_words(member) for member in schema[key]))
    match schema.get("type"):
        case "array":
            return _list_in_words(schema)
        case "object":
            inner = schema.get("additionalProperties")
            inside = type_in_words(inner) if isinstance(inner, dict) and inner else "any value"
            return f"mapping of name to {inside}"
        case "null":
            return "`null`"
        case "boolean":
            return "`true` or `false`"
        case "integer":
            return "whole number" + _range(schema)
        case "number":
            return "number" + _range(schema)
        case "string":
            return "text"
    return "any value"


def as_yaml(value: Any) -> str:
    """A value as YAML writes it in one line."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, BaseModel):
        return as_yaml(value.model_dump(exclude_defaults=True))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    return json.dumps(value)


def _list_in_words(schema: Mapping[str, Any]) -> str:
    items = schema.get("items") or next(iter(schema.get("prefixItems", [])), None)
    low, high = schema.get("minItems"), schema.get("maxItems")
    if low is not None and low == high:
        length = f" of {low}"
    elif low and high:
        length = f" of {low} to {high}"
    else:
        length = f" of at least {low}" if low else ""
    inner = type_in_words(items) if isinstance(items, dict) and items else "any value"
    return f"list{length}: {inner}" if length else f"list of {inner}"


def _range(schema: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    return " " + " and ".join(bounds) if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return as_yaml(value)
