"""From importance to a cut: which heads, channels and blocks of a network stay at one step of pruning.

Shapes: H heads, E head width, M MLP channels, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from strategies.backbone import Student
from strategies.component.group_importance import (
    Scores,
    along,
    block_scores,
    elements,
    head_channel_scores,
    head_scores,
)
from strategies.component.pruning_choice import Candidates, best, choose, choose_until
from strategies.component.pruning_goal import Goal
from strategies.cost import blocks_of, network_macs
from strategies.facts import Facts
from strategies.gradients import Gradients
from strategies.inner_widths import inner_axes
from strategies.shapes import BlockShape, Shapes
from strategies.surgery import EMBED, Axis, Cut, attention_rows, head_channels, not_known, sizes_of, vit_axes

if TYPE_CHECKING:
    from strategies.component.structured_pruning import StructuredPruningConfig


def transformer(
    student: Student,
    facts: Facts,
    config: StructuredPruningConfig,
    goal: Goal,
    share: float,
    gradients: Gradients | None,
) -> Cut | None:
    """What stays of a Vision Transformer.

    Args:
        student: as it is now.
        facts: of the network as pruning began; ratios are shares of that.
        share: how much of the way should be done after this step, above 0 to 1.
        gradients: of the loss, where importance reads them.

    Returns:
        `None` if everything stays.
    """
    began = blocks_of(facts.student, facts.shapes)
    aim = None
    if config.ratio is not None:
        ratio = config.ratio * share
    else:
        assert config.target_macs is not None, "the options hold one of both"
        cost = network_macs(facts.student, began)
        aim = cost - max(0.0, cost - config.target_macs) * share
        ratio = goal.ratio_for(facts, aim)
    if ratio == 0:
        return None
    known = goal.shapes(facts, ratio)
    model: Any = student.model
    axes, now = vit_axes(model), student.shapes
    parts = elements(dict(model.named_parameters()), config.importance, gradients)

    def important(scores: Scores) -> Tensor:
        return scores.importance(config.importance)

    # Blocks
    timm_depth = facts.student.depth + len(facts.shapes.removed)
    left = now.left(timm_depth)
    depth = timm_depth - len(known.removed)
    stays = list(range(len(left)))
    if depth < len(left):
        stays = best(torch.stack([important(s) for s in block_scores(parts, len(left))]), depth).tolist()
    shapes = Shapes(
        embed_dim=known.embed_dim,
        head_dim=known.head_dim,
        removed=tuple(b for b in range(timm_depth) if b not in {left[i] for i in stays}),
    )
    after = facts.further(shapes).student

    # The tokens' channels
    keep: dict[Axis, Tensor] = {}
    if after.embed_dim < model.embed_dim:
        if unknown := not_known(model):
            raise ValueError(
                f"structured_pruning.what: `{facts.student.model}` holds `{unknown[0]}`, which nobody knows how to "
                "narrow. Way out: leave `embed` out of `what`."
            )
        keep[EMBED] = best(important(along(parts, axes, EMBED)), after.embed_dim)

    # Heads and MLP channels
    at_start = dict(zip(facts.shapes.left(timm_depth), began.values(), strict=True))
    candidates: list[Candidates] = []
    for i in stays:
        block, start = model.blocks[i], at_start[left[i]]
        if "heads" in config.what:
            scores = head_scores(parts, axes, i, block.attn.num_heads)
            size = 4 * model.embed_dim * block.attn.head_dim
            candidates.append(Candidates("heads", important(scores), size, 1, start.num_heads))
        if "mlp" in config.what:
            scores = along(parts, axes, Axis("mlp", i))
            size = 2 * model.embed_dim
            candidates.append(Candidates("mlp", important(scores), size, config.round_to, start.mlp_hidden))

    def widths(kept: list[Tensor]) -> dict[int, BlockShape]:
        numbers = iter(len(k) for k in kept)
        shaped = {}
        for new, i in enumerate(stays):
            heads = next(numbers) if "heads" in config.what else model.blocks[i].attn.num_heads
            hidden = next(numbers) if "mlp" in config.what else model.blocks[i].mlp.fc1.out_features
            shaped[new] = BlockShape(heads, hidden)
        return shaped

    if aim is None or not candidates:
        kept = choose(candidates, config.scope, ratio)
    else:
        kept = choose_until(candidates, config.scope, lambda k: network_macs(after, widths(k)) <= aim)
    chosen = iter(kept)
    head_dim = (model.blocks[stays[0]].attn.head_dim, after.head_dim)
    for i in stays:
        attn = model.blocks[i].attn
        heads = next(chosen) if "heads" in config.what else torch.arange(attn.num_heads)
        if "mlp" in config.what:
            keep[Axis("mlp", i)] = next(chosen)
        if head_dim[1] < head_dim[0]:
            qk, v = (
                _in_each_head(important(s), head_dim[1]) for s in head_channel_scores(parts, axes, i, attn.num_heads)
            )
        else:
            qk = v = head_channels(heads, attn.head_dim)
        keep[Axis("heads", i)], keep[Axis("qkv", i)] = v, attention_rows(qk, v, attn.attn_dim)
    sizes = sizes_of(model, axes)
    return Cut(
        Shapes(widths(kept), shapes.embed_dim, shapes.head_dim, shapes.removed),
        {axis: index for axis, index in keep.items() if len(index) < sizes[axis]},
        tuple(stays) if len(stays) < len(left) else None,
        head_dim if head_dim[1] < head_dim[0] else None,
    )


def _in_each_head(importance: Tensor, number: int) -> Tensor:
    """Positions in H·E of each head's best channels.

    Args:
        importance: [H, E].
        number: channels that each head keeps.
    """
    E = importance.shape[1]
    return torch.cat([best(row, number) + h * E for h, row in enumerate(importance)])


def inner(student: Student, config: StructuredPruningConfig, moment: int, gradients: Gradients | None) -> Cut | None:
    """What stays inside the blocks of a network outside of the loop.

    Args:
        student: as it is now.
        moment: how many steps were done before; each removes the same share of what there was at the start.
        gradients: of the loss, where importance reads them.

    Returns:
        `None` if everything stays.
    """
    assert config.ratio is not None, "claims refuse a target"
    before, after = (1 - config.ratio * done / config.steps for done in (moment, moment + 1))
    if after == before:
        return None
    axes = inner_axes(student.model)
    parts = elements(dict(student.model.named_parameters()), config.importance, gradients)
    candidates: dict[Axis, Candidates] = {}
    for axis in dict.fromkeys(axis for dims in axes.values() for axis in dims.values()):
        scores = along(parts, axes, axis)
        candidates[axis] = Candidates(axis.kind, scores.importance(config.importance), scores.count, config.round_to)
    kept = choose(list(candidates.values()), config.scope, 1 - after / before)
    widths = {str(axis.where): len(index) for axis, index in zip(candidates, kept, strict=True)}
    return Cut(
        Shapes(widths=widths),
        {
            axis: index
            for (axis, candidate), index in zip(candidates.items(), kept, strict=True)
            if len(index) < candidate.number
        },
    )
