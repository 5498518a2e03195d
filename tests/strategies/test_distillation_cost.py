"""What only teaches costs nothing once the network is deployed."""

from __future__ import annotations

import pytest

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.facts import Facts
from tests.strategies.checks import DEIT, assert_exports, counted_macs, outside_blocks, plain_block
from tests.strategies.toys import strategy, student, toy

TEACHING = ("response", "feature", "manifold", "vitkd", "attention_relation", "spatial_channel", "token_labeling")
"""Strategies whose network is the plain one, apart from what trains it."""


@pytest.mark.parametrize("name", TEACHING)
@pytest.mark.parametrize("model", DEIT)
def test_macs_are_those_of_the_plain_network(model, name) -> None:
    facts = facts_of(ModelSpec(model=model))
    network = compose(
        build_model(ModelSpec(model=model), device="meta"), [strategy(name, {})], Facts(facts, facts)
    ).eval()
    assert counted_macs(network) == outside_blocks(facts.embed_dim) + 12 * plain_block(facts.embed_dim)


@pytest.mark.parametrize("name", TEACHING)
def test_it_exports(name) -> None:
    assert_exports(student(toy(), strategy(name, {})))
