"""Gather all claims, then report every conflict at once. Loads no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

from strategies import api
from strategies.api import (
    CLASS_TOKEN,
    DISTILLATION_TOKEN,
    SHAPES,
    TAP,
    TEACHER_LOGITS,
    TEACHER_PROJECTIONS,
    Claim,
    Claims,
    OptionError,
    Strategy,
)
from strategies.facts import Facts

WORDS = {
    api.INPUT: "the images' size and number of passes",
    api.EMBEDDING: "the tokens' embedding",
    api.ATTENTION: "the attention",
    api.POSITIONS: "what tells tokens their positions",
    api.ROTATION: "the rotation of queries and keys",
    api.TOKENS: "which tokens exist",
    api.MLP: "the MLP",
    api.DEPTH: "which images go on",
    api.SHAPES: "the number of heads and channels of attention",
    api.MLP_SHAPES: "the number of MLP channels",
    api.WIDTH: "the width of the tokens",
    api.BLOCKS: "the number of blocks",
    api.MATRICES: "the form of attention's weights",
    api.MLP_MATRICES: "the form of the MLP's weights",
    api.MIXING: "the mixing of heads",
    api.ALIKE: "widths that are the same in all blocks",
    api.KEYS: "the attention's keys",
    api.CLASS_ATTENTION: "the class token's attention",
    api.PROJECTIONS: "queries, keys and values",
    api.GRID: "the whole patch grid",
    api.PLACED: "the whole patch grid",
    api.GRID_SIZE: "a patch grid of one size",
    api.DENSE: "the same tokens in every image",
    api.TAP: "the tokens on the full grid",
    api.FINAL_TOKENS: "the final tokens on the full grid",
    api.DENSE_LOGITS: "an answer to each patch",
    api.EXITS: "exits",
    api.CLASS_TOKEN: "the class token",
    api.DISTILLATION_TOKEN: "the distillation token",
    api.TEACHER_LOGITS: "the teacher's logits",
    api.TEACHER_TAP: "the teacher's tokens",
    api.TEACHER_PROJECTIONS: "the teacher's queries, keys and values",
    api.TEACHER_TOKENS: "the teacher's final tokens",
    api.TEACHER_DENSE_LOGITS: "the teacher's answer to each place",
}
"""What a claim is about, in words; claims of third parties go by their own name."""

PLACES = (api.INPUT, api.GRID, api.PLACED, api.TAP, api.FINAL_TOKENS, api.DENSE_LOGITS)
"""Claims for which every patch must be at its place, in training too."""

Found = list[tuple[Strategy[Any], Claims]]


def left_by(strategies: Iterable[Strategy[Any]], facts: Facts) -> Facts:
    """What strategies that change shapes for good leave for the others."""
    for strategy in sorted((s for s in strategies if s.once), key=lambda s: s.late):
        facts = strategy.leaves(facts)
    return facts


def conflicts(strategies: Sequence[Strategy[Any]], facts: Facts, *, restored: bool = False) -> list[str]:
    """Why these strategies cannot act together on this network; empty if they can.

    Each reason names both strategies (or the strategy and what the network lacks), the blocks, and the way out.

    Args:
        facts: of the network before they act.
        restored: `facts` are of the network that they leave: it comes from a checkpoint.
    """
    cut = facts if restored else left_by((s for s in strategies if not s.late), facts)
    after = facts if restored else left_by((s for s in strategies if s.late), cut)
    reasons = _conflicts(strategies, facts, cut, after, restored)
    if cut != facts and any(s.once and s.moments() for s in strategies):
        reasons += _conflicts(strategies, facts, facts, facts, restored)  # the others also act on it as it begins
    return list(dict.fromkeys(reasons))


def _conflicts(
    strategies: Sequence[Strategy[Any]], before: Facts, cut: Facts, after: Facts, restored: bool
) -> list[str]:
    """Strategies that act once see the network before, those that act late what these left, the others after that."""

    def seen(strategy: Strategy[Any]) -> Facts:
        return (cut if strategy.late else before) if strategy.once else after

    reasons: list[str] = []
    for name, count in Counter(s.name for s in strategies).items():
        if count > 1:
            reasons.append(
                f"`{name}` is listed {count} times. Way out: keep one entry; the matrix appends to the stage's own."
            )
    claimed: Found = []
    for strategy in {s.name: s for s in strategies}.values():
        try:
            claimed.append((strategy, _with_placed(strategy.claims(seen(strategy)))))
        except OptionError as error:
            reasons.append(str(error))
    offered = frozenset[Claim]().union(*(claims.offers for _, claims in claimed))
    for strategy, claims in claimed:
        reasons += _missing(strategy, claims, seen(strategy), offered)
        reasons += _unplaced(strategy, claims, seen(strategy))
        if strategy.once and not restored and seen(strategy).shapes.ranks:
            reasons += _factored(strategy, claims)
    for (a, claims_a), (b, claims_b) in combinations(claimed, 2):
        reasons += _owned_twice(a.name, b.name, claims_a.owns & claims_b.owns)
    for (a, claims_a), (b, claims_b) in permutations(claimed, 2):
        # Where both own the same thing, that has been said.
        reasons += _hidden(a.name, b.name, claims_a.hides & (claims_b.needs | claims_b.owns) - claims_a.owns)
        reasons += _hidden(a.name, b.name, claims_a.hides & claims_a.owns & (claims_b.needs - claims_b.owns))
    return reasons


def _with_placed(claims: Claims) -> Claims:
    """Where a strategy leaves no grid, none reaches the block either, unless it says so."""
    gone = frozenset(Claim(api.PLACED, c.block) for c in claims.hides if c.what in (api.GRID, api.DENSE))
    return replace(claims, hides=claims.hides | (gone - claims.offers))


def _owned_twice(a: str, b: str, shared: Iterable[Claim]) -> list[str]:
    return [
        f"`{a}` and `{b}` both change {_words(what)}{_at(blocks)}. Way out: "
        + (f"give them different blocks, or keep one of the two{_at(blocks)}." if blocks else "keep one of the two.")
        for what, blocks in _grouped(shared)
    ]


def _hidden(hider: str, reader: str, shared: Iterable[Claim]) -> list[str]:
    return [
        f"`{reader}` needs {_words(what)}{_at(blocks)}, but `{hider}` leaves nothing of it there. Way out: "
        + (
            f"move `{reader}` or `{hider}` to other blocks, or keep one of the two."
            if blocks
            else "keep one of the two."
        )
        for what, blocks in _grouped(shared)
    ]


def _missing(strategy: Strategy[Any], claims: Claims, facts: Facts, offered: frozenset[Claim]) -> list[str]:
    """What this strategy needs or changes and the network, its teacher and the other strategies do not have."""
    reasons: list[str] = []
    asked = (claims.owns | claims.needs) - offered
    for number in sorted({claim.teacher for claim in asked}):
        for what, blocks in _grouped(claim for claim in asked if claim.teacher == number):
            owned = any(c.what == what for c in claims.owns)
            lack = _lack(what, blocks, facts, owned=owned, number=number)
            if lack is not None:
                words = _words(what) if number == 0 else _words(what).replace("the teacher", f"teacher {number + 1}", 1)
                reasons.append(f"`{strategy.name}` {'changes' if owned else 'needs'} {words}{_at(blocks)}, but {lack}")
    return reasons


def _unplaced(strategy: Strategy[Any], claims: Claims, facts: Facts) -> list[str]:
    """Why this strategy cannot have what it claims of patches' places, because timm takes some of them away. What
    other strategies offer cannot bring them back."""
    student = facts.student
    claimed = [blocks for what, blocks in _grouped(claims.owns | claims.needs) if what in PLACES]
    if student.patch_drop and claimed:
        return [
            f"`{strategy.name}` needs {_words(api.GRID)}{_at(claimed[0])}, but `{student.model}` drops patches at "
            f"random in training (`patch_drop_rate` is {student.patch_drop:g}; allowed: 0). Way out: "
            "`patch_drop_rate: 0` in the student's `args`."
        ]
    return []


def _factored(strategy: Strategy[Any], claims: Claims) -> list[str]:
    """Why this strategy cannot cut layers that an earlier stage stored as factors."""
    if not any(claim.what in (SHAPES, api.MLP_SHAPES, api.WIDTH) for claim in claims.owns):
        return []
    return [
        f"`{strategy.name}` changes {_words(SHAPES)}, but an earlier stage stored layers as factors, which cannot be "
        f"cut. Way out: `{strategy.name}` in the same stage as the strategy that factorised, or in one before it."
    ]


def _lack(what: str, blocks: Sequence[int], facts: Facts, *, owned: bool, number: int = 0) -> str | None:
    """What is missing and the way out; `None` if nothing is. `number` says which teacher it is about."""
    student = facts.student
    if what.startswith("teacher."):
        if facts.teacher is None:
            return "this stage has no teacher. Way out: set `teacher` in the stage or in the experiment."
        if number >= len(facts.teachers):
            have = "one teacher" if len(facts.teachers) == 1 else f"{len(facts.teachers)} teachers"
            return f"this stage has {have}. Way out: add another to `teacher.also`."
        teacher = facts.teachers[number]
        if teacher.answers_only and what != TEACHER_LOGITS:
            return (
                f"of the stored teacher `{teacher.model}` there is nothing but the logits. Way out: leave "
                "`teacher.stored` out, so that the teacher answers in every step."
            )
        if what == TEACHER_PROJECTIONS and teacher.family == "other":
            return f"the teacher `{teacher.model}` has none. Way out: a plain Vision Transformer as the teacher."
        if what in (TEACHER_LOGITS, api.TEACHER_DENSE_LOGITS) and teacher.num_classes != student.num_classes:
            return (
                f"the teacher `{teacher.model}` knows {teacher.num_classes} classes and the student knows "
                f"{student.num_classes}. Way out: a teacher trained on these classes (a stage or a checkpoint)."
            )
        return _beyond(blocks, teacher.depth, f"the teacher `{teacher.model}`")
    if what == TAP:
        return _beyond(blocks, student.depth, f"`{student.model}`")
    if what == api.EXITS:
        return "no strategy of this stage gives the network any. Way out: list `early_exit` beside it."
    if what in (api.FINAL_TOKENS, api.DENSE_LOGITS):
        return None
    if what == SHAPES and not blocks:
        if student.num_inner_widths:
            return None
        return (
            f"`{student.model}` has no channels inside its blocks that can be cut: {student.why_not_vit}. "
            "Way out: a plain Vision Transformer, or a network of MLPs or ResNet blocks (Swin, PVTv2, ResNet)."
        )
    if student.family == "other" and what in WORDS:
        return (
            f"`{student.model}` offers only logits and the features after its stages: {student.why_not_vit}. "
            f"Way out: a plain Vision Transformer (`vit_*`, `deit_*`) as the student."
        )
    if what == api.INPUT and student.patch_embedding != "PatchEmbed":
        return (
            f"`{student.model}` makes tokens of patches with `{student.patch_embedding}`, which takes images of one "
            "size alone. Way out: a network with timm's own `PatchEmbed`, as plain Vision Transformers have it."
        )
    if what in (SHAPES, api.MLP_SHAPES) and not student.can_prune:
        return (
            f"the heads and channels of `{student.model}` cannot be cut: its MLP is gated or normed inside. "
            f"Way out: a Vision Transformer with timm's plain MLP, for example `deit_small_patch16_224`."
        )
    if what == CLASS_TOKEN and not student.has_class_token:
        return (
            f"`{student.model}` has none with these arguments. "
            f"Way out: `class_token: true`, or a model that has one, for example `deit_tiny_patch16_224`."
        )
    if what == DISTILLATION_TOKEN and not owned and not student.has_distillation_token:
        return (
            f"`{student.model}` has none. "
            f"Way out: a distilled model, for example `deit_tiny_distilled_patch16_224`, or `distillation_token`."
        )
    return _beyond(blocks, student.depth, f"`{student.model}`")


def _beyond(blocks: Sequence[int], depth: int, whose: str) -> str | None:
    if not blocks or max(blocks) < depth:
        return None
    if depth == 0:
        return f"{whose} hands out no features. Way out: another network, or a strategy that reads logits only."
    return f"{whose} has only {_at(range(depth)).removeprefix(' at ')}. Way out: blocks up to {depth - 1}."


def _grouped(claims: Iterable[Claim]) -> list[tuple[str, list[int]]]:
    """Claims by what they are about, with their blocks in order; no blocks for the whole network."""
    blocks: dict[str, list[int]] = defaultdict(list)
    for claim in claims:
        blocks[claim.what] += [] if claim.block is None else [claim.block]
    return [(what, sorted(blocks[what])) for what in sorted(blocks)]


def _words(what: str) -> str:
    return WORDS.get(what, f"`{what}`")


def _at(blocks: Iterable[int]) -> str:
    """` at blocks 0–5, 8`; empty for the whole network."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    if not runs:
        return ""
    parts = [f"{a}" if a == b else f"{a}–{b}" for a, b in runs]
    return f" at block{'s' if len(parts) > 1 or runs[0][0] != runs[0][1] else ''} {', '.join(parts)}"
