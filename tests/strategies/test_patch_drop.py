"""Networks whose patches timm drops at random in training (`patch_drop_rate`), or embeds in another way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strategies import registry
from strategies.catalog import facts_of
from strategies.claims import PLACES, conflicts
from strategies.facts import Facts
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, together, toy

EXAMPLES = [(name, i) for name in registry.builtin_names() for i in range(len(registry.load(name).examples))]
DROPPING = toy(patch_drop_rate=0.5)
READ_PLACES = frozenset({
    "attention_relation", "coarse_to_fine", "conditional_position", "early_exit", "early_knowledge",
    "elastic_resolution", "feature", "global_filter", "linear_attention", "manifold", "rotary_position",
    "skip_attention", "spatial_channel", "spatial_reduction_attention", "token_labeling", "vitkd", "weight_sharing",
    "window_attention",
})  # fmt: skip
"""Those that look at patches as a picture, or at places of patches, with some of their options."""


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_who_needs_the_patches_places_is_refused_at_plan_time(name: str, index: int) -> None:
    acting = strategy(name, registry.load(name).examples[index])
    claims = acting.claims(facts_for(DROPPING))
    reasons = conflicts(together(acting), facts_for(DROPPING))
    own = [reason for reason in reasons if f"`{name}`" in reason]
    if any(claim.what in PLACES for claim in claims.needs | claims.owns):
        (reason,) = own
        for part in ("`patch_drop_rate` is 0.5", "allowed: 0", "Way out: `patch_drop_rate: 0`", "vit_tiny"):
            assert part in reason
        assert conflicts(together(acting), facts_for(toy())) == []
    else:
        assert own == []


@pytest.mark.parametrize("name", sorted(READ_PLACES))
def test_everybody_who_reads_places_claims_so(name: str) -> None:
    examples = registry.load(name).examples
    refused = [conflicts([strategy(name, options)], facts_for(DROPPING)) for options in examples]
    assert any("patch_drop_rate" in " ".join(reasons) for reasons in refused)


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_who_is_not_refused_trains_on_what_is_left(name: str, index: int) -> None:
    acting = together(strategy(name, registry.load(name).examples[index]))
    if conflicts(acting, facts_for(DROPPING)):
        return
    network = student(DROPPING, *acting)
    loss = step(network, acting, images(), torch.tensor([0, 3, 9, 2, 2, 7]), teacher(*acting, spec=DROPPING))
    assert torch.isfinite(loss)


def test_what_another_strategy_offers_brings_no_patch_back() -> None:
    pair = [strategy("token_idling", {"blocks": [1]}), strategy("conditional_position", {"blocks": [0]})]
    assert conflicts(pair, facts_for(toy())) == []
    (reason,) = conflicts(pair, facts_for(DROPPING))
    assert "`conditional_position`" in reason
    assert "patch_drop_rate" in reason


def test_options_that_read_no_place_are_granted() -> None:
    for name, options in (("linear_attention", {"kind": "elu"}), ("early_exit", {"blocks": [1]})):
        assert conflicts([strategy(name, options)], facts_for(DROPPING)) == []


def test_shares_that_leave_no_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`patch_drop_rate` is 1.5. Way out: a share from 0 to below 1"):
        facts_of(toy(patch_drop_rate=1.5))


@pytest.mark.parametrize("name", ["coarse_to_fine", "elastic_resolution"])
def test_images_of_other_sizes_need_timms_own_embedding(name: str) -> None:
    own = facts_for(toy())
    assert conflicts([strategy(name, {})], own) == []
    other = Facts(replace(own.student, patch_embedding="HybridEmbed"))
    (reason,) = conflicts([strategy(name, {})], other)
    for part in (f"`{name}`", "`HybridEmbed`", "one size", "Way out"):
        assert part in reason
