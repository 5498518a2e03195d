"""Which strategies act together on a usual network, found by asking their claims. Loads no torch."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from specs.model import ModelSpec
from strategies import registry
from strategies.api import Strategy
from strategies.catalog import facts_of
from strategies.claims import WORDS, conflicts
from strategies.facts import Facts

REFERENCE = "deit_small_patch16_224"
"""The network that is asked about: 12 blocks, a class token; its teacher is the same."""


class Combinations(NamedTuple):
    """How a strategy gets on with each other installed one, both with their defaults."""

    possible: list[str]
    refused: dict[str, str]
    """Name → the first reason, with the way out."""


@cache
def reference_facts() -> Facts:
    """The reference network as student and teacher."""
    facts = facts_of(ModelSpec(model=REFERENCE))
    return Facts(facts, teacher=facts)


def with_defaults(name: str) -> Strategy[Any]:
    """A strategy with its default options; where some are required, with those of its first example.

    Raises:
        StrategyUnavailable: if it is not registered or cannot be loaded.
    """
    strategy = registry.load(name)
    try:
        config = strategy.Config.model_validate({"name": name})
    except ValidationError:
        example = json.dumps({"name": name, **strategy.examples[0]})
        config = strategy.Config.model_validate_json(example)  # through JSON: lists mean tuples there
    return registry.build(config)


def seams(name: str) -> list[str]:
    """What it changes in a network, in words."""
    try:
        owned = with_defaults(name).claims(reference_facts()).owns
    except ValueError:
        return ["(not on the reference network)"]
    return sorted({WORDS.get(claim.what, claim.what) for claim in owned})


def together(*names: str) -> list[Strategy[Any]]:
    """These strategies with their defaults, and those that they cannot do without."""
    acting = {name: with_defaults(name) for name in names}
    for strategy in list(acting.values()):
        acting |= {other: with_defaults(other) for other in strategy.beside if other not in acting}
    return list(acting.values())


def combinations(name: str) -> Combinations:
    """Every other installed strategy beside this one."""
    possible, refused = [], {}
    for other in registry.names():
        if other == name:
            continue
        try:
            acting = together(name, other)
        except registry.StrategyUnavailable:
            continue
        reasons = conflicts(acting, reference_facts())
        if reasons:
            refused[other] = reasons[0]
        else:
            possible.append(other)
    return Combinations(possible, refused)
