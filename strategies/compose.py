"""Build a network and attach strategies to it. The order is fixed here and nowhere else:
component → dynamic → distillation; compile and DDP come after, in the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from specs.model import ModelSpec
from strategies import api
from strategies.api import Claim, Strategy
from strategies.backbone import Student, TapStudent, VisionTransformerStudent
from strategies.claims import conflicts
from strategies.facts import Facts
from strategies.shapes import WHOLE, Shapes
from strategies.surgery import reshape

ORDER = ("component", "dynamic", "distillation")


def build_model(spec: ModelSpec, shapes: Shapes = WHOLE, *, device: str | None = None) -> nn.Module:
    """Create the timm network that a spec names, cut to the shapes that pruning left.

    Raises:
        ValueError: if timm refuses the arguments, or pretrained weights cannot be had; says the way out.
    """
    args: dict[str, Any] = dict(spec.args)
    if device is not None:
        args["device"] = device
    try:
        model: nn.Module = timm.create_model(spec.model, pretrained=spec.pretrained, **args)
    except (TypeError, AssertionError, RuntimeError, OSError) as error:
        hint = (
            "the weights are downloaded at the first use and then cached; check the network, or set `pretrained: false`"
            if spec.pretrained
            else "check `args` against the constructor of this timm model"
        )
        raise ValueError(f"timm cannot build `{spec.model}` with {spec.args}: {error}. Way out: {hint}.") from error
    reshape(model, shapes)
    return model


def runs_in_loop(model: nn.Module) -> bool:
    """Whether the explicit loop can run this network with all seams; others get logits and taps."""
    return (
        isinstance(model, VisionTransformer)
        and type(model).__name__ in ("VisionTransformer", "VisionTransformerDistilled")
        and all(type(b) is Block and type(b.attn) is Attention for b in model.blocks)
    )


def student_of(model: nn.Module) -> Student:
    """Wrap a timm network, without strategies."""
    return VisionTransformerStudent(model) if runs_in_loop(model) else TapStudent(model)


def ordered(strategies: Sequence[Strategy[Any]]) -> list[Strategy[Any]]:
    """Strategies in the order in which they act; within a kind, first those that change shapes for good (others size
    their modules by what is left; of them, those that act late last), then in the spec's order."""
    return sorted(strategies, key=lambda s: (ORDER.index(s.kind), not s.once, s.late))


def compose(
    model: nn.Module,
    strategies: Sequence[Strategy[Any]],
    facts: Facts,
    *,
    restored: bool = False,
) -> Student:
    """Attach strategies to a network: all claims first, then every change.

    Args:
        model: a timm network at the shapes of `facts`, changed in place.
        facts: what is known of student and teacher.
        restored: the weights will come from a checkpoint, so that strategies that act once do not act again.

    Raises:
        ValueError: if strategies conflict; lists every conflict.
    """
    reasons = conflicts(strategies, facts, restored=restored)
    if reasons:
        raise ValueError("these strategies cannot be combined:\n" + "\n".join(f"  - {r}" for r in reasons))
    student = student_of(model)
    student.shapes = facts.shapes
    for strategy in (s for s in ordered(strategies) if s.once and not restored):
        strategy.wrap(student, facts.further(student.shapes) if strategy.late else facts)
    facts = facts.further(student.shapes)
    for strategy in (s for s in ordered(strategies) if not s.once):
        strategy.wrap(student, facts)
    needs = needs_of(strategies, facts)
    _hand_out(student, needs, api.TAP, api.PROJECTIONS, api.FINAL_TOKENS, api.DENSE_LOGITS)
    if isinstance(student, VisionTransformerStudent):
        for what in (api.KEYS, api.CLASS_ATTENTION):
            for block in _blocks(needs, what):
                student.looks[block] = student.looks.get(block, frozenset()) | {what}
    return student


def teacher_of(student: Student, strategies: Sequence[Strategy[Any]], facts: Facts, number: int = 0) -> Student:
    """Freeze a network into a teacher that hands out what these strategies need of it.

    Args:
        facts: of the student's network as those that act once left it.
        number: which of the stage's teachers it is, from 0.
    """
    needs = frozenset(claim for claim in needs_of(strategies, facts) if claim.teacher == number)
    _hand_out(student, needs, api.TEACHER_TAP, api.TEACHER_PROJECTIONS, api.TEACHER_TOKENS, api.TEACHER_DENSE_LOGITS)
    student.always_tap = True
    student.readouts.clear()
    student.companions.clear()
    return student.requires_grad_(False).eval()


def needs_of(strategies: Sequence[Strategy[Any]], facts: Facts) -> frozenset[Claim]:
    """What these strategies read of a network, and of its teachers. Those that act once have no use for that.

    Args:
        facts: of the network as those that act once left it.
    """
    return frozenset[Claim]().union(*(s.claims(facts).needs for s in strategies if not s.once))


def _hand_out(student: Student, needs: frozenset[Claim], tap: str, projections: str, tokens: str, dense: str) -> None:
    """Let a network hand out what the claims of these names ask for."""
    student.taps = _blocks(needs, tap)
    student.wants_tokens, student.wants_dense = (any(c.what == name for c in needs) for name in (tokens, dense))
    if isinstance(student, VisionTransformerStudent):
        for block in _blocks(needs, projections):
            student.looks[block] = student.looks.get(block, frozenset()) | {"projections"}


def _blocks(claims: frozenset[Claim], what: str) -> frozenset[int]:
    """Blocks of the claims of this name."""
    return frozenset(c.block for c in claims if c.what == what and c.block is not None)
