"""Networks as they are deployed, and how a second process builds the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, JsonValue

from orchestrator.errors import StoreError
from orchestrator.training.checkpoint import WEIGHTS, read_network
from specs.model import ModelSpec
from strategies import registry
from strategies.api import Strategy
from strategies.backbone import EXTRAS, Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts
from strategies.knobs import knob_of, turned


class Deployed(NamedTuple):
    """A network as it is deployed: in evaluation mode, on CPU, without what only training needs."""

    network: Student
    strategies: list[Strategy[Any]]
    """Those that act in it."""


class Recipe(BaseModel):
    """A network: the one that a training stage left, or one with random weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artefact: Path | None = None
    """Folder of a training stage's artefact."""
    model: ModelSpec | None = None
    """A timm network, its arguments complete; random weights."""
    strategies: tuple[dict[str, JsonValue], ...] = ()
    """Options of the strategies on `model`, each with its `name`."""
    turned: dict[str, float] = {}
    """Knob → setting, where the artefact's network is not taken as it was trained."""

    def build(self) -> Deployed:
        """Build the network.

        Raises:
            ValueError: if the network cannot be built or the strategies do not fit it; says why.
        """
        if self.artefact is not None:
            return load_deployed(self.artefact, self.turned)
        assert self.model is not None, "a recipe names an artefact or a model"
        return deployed_network(self.model, [strategy_of(options) for options in self.strategies])


def strategy_of(options: dict[str, Any]) -> Strategy[Any]:
    """A strategy from its options as JSON has them.

    Raises:
        ValueError: if there is no such strategy or option.
    """
    config = registry.resolver(options["name"])
    return registry.build(config.model_validate_json(json.dumps(options)))  # through JSON: lists mean tuples there


def deployed_network(model: ModelSpec, strategies: Sequence[Strategy[Any]]) -> Deployed:
    """A timm network with random (always the same) weights, and what strategies leave in it after training.

    Nobody teaches a deployed network, so where a strategy asks about the teacher it is shown the student itself.

    Raises:
        ValueError: if the network cannot be built or the strategies do not fit it.
    """
    facts = facts_of(model)
    lasting = [s for s in strategies if s.deployed]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = compose(build_model(model), lasting, Facts(facts, teacher=facts))
    return _at_the_end(student, lasting)


def load_deployed(folder: Path, settings: Mapping[str, float] = MappingProxyType({})) -> Deployed:
    """The network that a training stage left.

    Args:
        folder: the stage's artefact.
        settings: knob → setting, where it differs from the trained one.

    Raises:
        StoreError: if a file is missing, damaged, or does not hold the network's tensors.
    """
    saved = read_network(folder)
    strategies = [registry.build(config) for config in saved.strategies]
    for i, strategy in enumerate(strategies):
        knob = knob_of(strategy)
        if knob is not None and knob in settings:
            strategies[i] = turned(strategy, settings[knob])
    lasting = [s for s in strategies if s.deployed]
    facts = facts_of(saved.model)
    known = Facts.of(facts, saved.shapes, saved.teachers or (facts,))
    student = compose(build_model(saved.model, saved.shapes), lasting, known, restored=True)
    dropped = tuple(f"{EXTRAS}{s.name}." for s in strategies if not s.deployed)
    try:
        student.load_network_state({k: v for k, v in saved.state.items() if not k.startswith(dropped)})
    except RuntimeError as error:
        raise StoreError(f"{folder / WEIGHTS} does not hold the tensors of this network: {error}") from error
    return _at_the_end(student, lasting)


def _at_the_end(student: Student, strategies: list[Strategy[Any]]) -> Deployed:
    for strategy in strategies:
        strategy.at(student, 1.0)
    return Deployed(student.eval(), strategies)
