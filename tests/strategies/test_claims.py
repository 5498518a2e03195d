"""Every kind of conflict, each with both names, the blocks and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specs.model import ModelSpec
from specs.strategy import StrategyConfig
from strategies.api import (
    ATTENTION,
    CLASS_TOKEN,
    DEPTH,
    DISTILLATION_TOKEN,
    SHAPES,
    TAP,
    TEACHER_LOGITS,
    TEACHER_TAP,
    TOKENS,
    Claim,
    Claims,
    OptionError,
    Strategy,
    at_blocks,
)
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.facts import Facts

STUDENT = facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"num_classes": 10}))
TEACHER = facts_of(ModelSpec(model="vit_small_patch16_224", args={"num_classes": 10, "depth": 6}))
FACTS = Facts(STUDENT, TEACHER)


def acting(name: str, owns: Any = (), needs: Any = (), hides: Any = ()) -> Strategy[Any]:
    """A strategy that claims just this."""

    class Fixed(Strategy[Any]):
        kind = "dynamic"

        def claims(self, facts: Facts) -> Claims:
            return Claims(frozenset(owns), frozenset(needs), frozenset(hides))

    return Fixed(StrategyConfig(name=name))


def only(reasons: list[str], *parts: str) -> None:
    """There is exactly one reason; it has all these parts and a way out."""
    (reason,) = reasons
    for part in (*parts, "Way out"):
        assert part in reason, reason


def test_disjoint_blocks_are_legal():
    a = acting("merging", owns=at_blocks(TOKENS, range(6)))
    b = acting("dropping", owns=at_blocks(TOKENS, range(6, 12)), needs=at_blocks(TAP, [11]) | {Claim(CLASS_TOKEN)})
    assert conflicts([a, b], FACTS) == []
    assert conflicts([], FACTS) == []


def test_two_owners_are_named_with_the_shared_blocks_grouped():
    a = acting("merging", owns=at_blocks(TOKENS, [0, 1, 2, 3, 4, 5, 8]))
    b = acting("dropping", owns=at_blocks(TOKENS, range(12)))
    only(conflicts([a, b], FACTS), "`merging` and `dropping`", "which tokens exist at blocks 0–5, 8")


def test_a_need_that_another_hides():
    a = acting("merging", owns=at_blocks(TOKENS, [2]), hides=at_blocks(ATTENTION, range(2, 12)))
    b = acting("reading", needs=at_blocks(ATTENTION, [1, 3]))
    only(conflicts([b, a], FACTS), "`reading` needs the attention at block 3", "`merging`")


def test_hiding_what_one_needs_oneself_is_no_conflict():
    a = acting("a", needs=at_blocks(TAP, [3]), hides=at_blocks(TAP, [3]))
    assert conflicts([a], FACTS) == []


def test_owner_and_hider_of_the_same_claim_are_reported_once():
    a = acting("a", owns=at_blocks(ATTENTION, [3]), hides=at_blocks(ATTENTION, [3]))
    b = acting("b", owns=at_blocks(ATTENTION, [3]), needs=at_blocks(ATTENTION, [3]))
    only(conflicts([a, b], FACTS), "`a` and `b` both change the attention at block 3.")


def test_owning_what_another_hides_is_a_conflict():
    a = acting("a", hides=at_blocks(ATTENTION, [3]))
    b = acting("b", owns=at_blocks(ATTENTION, [3]))
    only(conflicts([a, b], FACTS), "`b` needs the attention at block 3", "`a`")


def test_duplicates_and_option_errors_are_reported_together():
    class Strict(Strategy[Any]):
        kind = "component"

        def claims(self, facts: Facts) -> Claims:
            raise OptionError(self.name, "blocks", "block 99 does not exist", "0–11", "Write `blocks: [11]`.")

    doubled = acting("twice", owns=at_blocks(DEPTH, [3]))
    reasons = conflicts([doubled, doubled, Strict(StrategyConfig(name="strict"))], FACTS)
    assert len(reasons) == 2
    assert "`twice` is listed 2 times" in reasons[0]
    assert "strict.blocks: block 99 does not exist" in reasons[1]


@pytest.mark.parametrize(
    ("strategy", "facts", "parts"),
    [
        (acting("s", needs={Claim(TEACHER_LOGITS)}), Facts(STUDENT), ["`s`", "no teacher"]),
        (
            acting("s", needs=at_blocks(TEACHER_TAP, [3, 8])),
            FACTS,
            ["blocks 3, 8", "vit_small", "blocks 0–5", "up to 5"],
        ),
        (
            acting("s", needs={Claim(TEACHER_LOGITS)}),
            Facts(STUDENT, replace(TEACHER, num_classes=1000)),
            ["1000 classes", "student knows 10"],
        ),
        (
            acting("s", needs={Claim(CLASS_TOKEN)}),
            Facts(replace(STUDENT, has_class_token=False)),
            ["needs the class token", "class_token: true"],
        ),
        (acting("s", needs={Claim(DISTILLATION_TOKEN)}), FACTS, ["needs the distillation token"]),
        (acting("s", owns=at_blocks(TOKENS, [11, 12])), FACTS, ["blocks 11–12", "only blocks 0–11"]),
        (acting("s", needs=at_blocks(TAP, [12])), FACTS, ["block 12", "only blocks 0–11"]),
        (
            acting("s", owns=at_blocks(TOKENS, range(2))),
            Facts(replace(STUDENT, family="other", why_not_vit="it is a ResNet")),
            ["only logits", "it is a ResNet", "blocks 0–1"],
        ),
        (acting("s", owns=at_blocks(SHAPES, range(12))), Facts(replace(STUDENT, can_prune=False)), ["cannot be cut"]),
        (
            acting("s", needs=at_blocks(TAP, [0])),
            Facts(replace(STUDENT, family="other", depth=0, why_not_vit="x")),
            ["hands out no features"],
        ),
    ],
)
def test_what_the_network_or_its_teacher_lacks(strategy, facts, parts):
    only(conflicts([strategy], facts), *parts)


def test_what_other_families_do_have_is_granted():
    other = Facts(replace(STUDENT, family="other", depth=4, why_not_vit="it is a ResNet"), TEACHER)
    strategy = acting("s", needs=at_blocks(TAP, [3]) | at_blocks(TEACHER_TAP, [5]) | {Claim(TEACHER_LOGITS)})
    assert conflicts([strategy], other) == []


def test_adding_the_distillation_token_needs_none():
    assert conflicts([acting("s", owns={Claim(DISTILLATION_TOKEN)})], FACTS) == []


def test_classes_do_not_matter_to_features():
    other_classes = Facts(STUDENT, replace(TEACHER, num_classes=1000))
    assert conflicts([acting("s", needs=at_blocks(TEACHER_TAP, [5]))], other_classes) == []


def test_claims_of_third_parties_are_checked_too():
    a, b = acting("a", owns=at_blocks("router", [1])), acting("b", owns=at_blocks("router", [1]))
    only(conflicts([a, b], FACTS), "`router` at block 1")
