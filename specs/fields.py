"""Which options type stands behind a path of a spec: for naming known keys and explaining fields."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from specs.assign import value_at
from specs.experiment import Experiment
from specs.problems import SpecPath
from specs.strategy import Resolver, StrategyConfig

_LISTS = (list, tuple, set, frozenset)


def model_at(path: SpecPath, data: Any, resolver: Resolver, top: Any = Experiment) -> type[BaseModel] | None:
    """Options type of the mapping at a path, or `None` where there is none (free-form mappings, unknown strategies)."""
    annotation, here = _narrow(top, data, resolver), data
    for item in path:
        if _is_model(annotation):
            field = annotation.model_fields.get(str(item))
            annotation = field.annotation if field else None
        elif get_origin(annotation) in _LISTS:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return None
        here = value_at(here, (item,))
        annotation = _narrow(annotation, here, resolver)
    return annotation if _is_model(annotation) else None


def field_at(path: SpecPath, data: Any, resolver: Resolver, top: Any = Experiment) -> FieldInfo | None:
    """Field that a path names, or `None` if it is no field of an options type."""
    model = model_at(path[:-1], data, resolver, top) if path else None
    return model.model_fields.get(str(path[-1])) if model else None


def kinds_at(path: SpecPath, data: Any, resolver: Resolver) -> list[str]:
    """Values of `kind` among which a mapping at this path chooses; empty if it has no kinds."""
    field = field_at(path, data, resolver)
    members = [_narrow(member, None, resolver) for member in _members(field.annotation)] if field else []
    return [kind for member in members if _is_model(member) for kind in _kinds(member)]


def first_sentence(field: FieldInfo) -> str:
    """What a field means, in one sentence."""
    text = " ".join((field.description or "").split())
    head, stop, _ = text.partition(". ")
    return head + "." if stop else text


@cache
def paths_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Dotted paths of all fields below an options type, shallow ones first; `*` stands for list indices and labels."""
    found: list[str] = []
    level: list[tuple[str, type[BaseModel]]] = [("", model)]
    while level:
        deeper: list[tuple[str, type[BaseModel]]] = []
        for prefix, current in level:
            for name, field in current.model_fields.items():
                found.append(prefix + name)
                deeper += [(f"{prefix}{name}.{star}", child) for star, child in _models(field.annotation)]
        level = deeper
    return tuple(dict.fromkeys(found))


def _models(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Options types inside an annotation, with the `*.` that stand for the containers around them."""
    for member in _members(annotation):
        if get_origin(member) in (list, dict):
            for star, model in _models(get_args(member)[-1]):
                yield "*." + star, model
        elif _is_model(member) and member is not StrategyConfig:
            yield "", member


def _narrow(annotation: Any, value: Any, resolver: Resolver) -> Any:
    """The member of a union that a value chooses, and a strategy's own options type."""
    members = _members(annotation)
    if isinstance(value, Mapping):
        models = [member for member in members if _is_model(member)]
        chosen = [m for m in models if value.get("kind") in _kinds(m)] or (models if len(models) == 1 else [])
        annotation = next(iter(chosen or [m for m in members if get_origin(m) is dict]), None)
    elif isinstance(value, list):
        annotation = next((member for member in members if get_origin(member) in _LISTS), None)
    else:
        annotation = members[0] if len(members) == 1 else None
    if annotation is StrategyConfig and isinstance(value, Mapping) and isinstance(value.get("name"), str):
        try:
            return resolver(value["name"])
        except ValueError:
            return None
    return annotation


def _members(annotation: Any) -> list[Any]:
    """Members of a (possibly annotated) union, without `None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [] if annotation is type(None) else [annotation]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
