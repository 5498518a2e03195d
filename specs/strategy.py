"""What a strategy's options have in common, and how a spec's list of strategies becomes typed.

The set of strategies is open (entry points), so `specs` cannot name their types: whoever loads a spec passes a
resolver, ``name -> StrategyConfig subclass``, in the validation context.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator
from pydantic_core import PydanticCustomError

from specs.base import SpecModel

Resolver = Callable[[str], "type[StrategyConfig]"]
"""Gives the options type of the strategy with this name; raises `ValueError` with the way out if there is none."""

RESOLVER_KEY = "strategy_resolver"
"""Key of the resolver in pydantic's validation context."""


class StrategyConfig(SpecModel):
    """Options of one strategy. Subclasses pin `name` to a literal and add their options with docstrings."""

    name: str
    """Registered name of the strategy."""


def _typed(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> StrategyConfig:
    """Validate one entry of a `strategies` list against the options type of the strategy it names."""
    if isinstance(value, StrategyConfig):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise PydanticCustomError(
            "strategy_form", "a strategy is a mapping with a `name` and its options, for example `{{name: response}}`"
        )
    resolver: Resolver | None = (info.context or {}).get(RESOLVER_KEY)
    assert resolver is not None, "specs with strategies are validated with a resolver in the context"
    try:
        options = resolver(value["name"])
    except ValueError as error:
        raise PydanticCustomError("strategy_unknown", "{reason}", {"reason": str(error)}) from error
    # Through JSON, so that strict validation treats lists as YAML means them (tuples, frozen sets).
    return options.model_validate_json(json.dumps(value), context=info.context)


AnyStrategy = Annotated[
    SerializeAsAny[StrategyConfig],
    WrapValidator(_typed),
    WithJsonSchema({"title": "AnyStrategy", "type": "object", "required": ["name"]}),
]
"""One entry of a `strategies` list. `specs.load.json_schema` puts the registered strategies in the place of this
schema, which it knows by its title."""
