"""Attention relations: the student's tokens learn to attend to one another as the teacher's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import GRID, PROJECTIONS, TEACHER_PROJECTIONS, Claims, OptionError, Strategy, at_blocks
from strategies.distillation.pairs import Pairs, last_pair, refuse_twice
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output

Relation = Literal["qq", "qk", "qv", "kq", "kk", "kv", "vq", "vk", "vv"]


class AttentionRelationConfig(StrategyConfig):
    """Options of `attention_relation`."""

    name: Literal["attention_relation"] = "attention_relation"
    """Always `attention_relation`."""

    layers: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)] | None = None
    """Blocks compared: [[student block, teacher block], ...], both from 0. `null` = the last block of each. TinyMIM
    takes the teacher's block at three quarters of its depth; MiniViT every block."""

    heads: PositiveInt | None = None
    """Relation heads: runs of channels that are compared apart. Must divide the width of queries in both networks.
    `null` = the largest number that does, up to the student's own number of heads."""

    relations: Annotated[tuple[Relation, ...], Field(min_length=1)] = ("qq", "kk", "vv")
    """What meets what: `qk` are queries and keys, which is attention itself. TinyMIM: `[qk, vv]`. MiniViT: all nine."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term beside the task's cross-entropy, which keeps weight 1. 0 = no distillation."""

    @model_validator(mode="after")
    def _each_once(self) -> AttentionRelationConfig:
        refuse_twice("layers", self.layers)
        if len(set(self.relations)) != len(self.relations):
            raise ValueError("`relations` holds one twice; write each once")
        return self


class AttentionRelation(Strategy[AttentionRelationConfig]):
    """loss = CE(student, label) + weight · mean of CE(softmax(t_i t_jᵀ/√d), softmax(s_i s_jᵀ/√d)).

    s_i and t_i are queries, keys or values of student and teacher, cut into relation heads of d channels; the mean is
    over block pairs, relations, heads, images and tokens. Zhang et al. 2022 (MiniViT), arXiv:2204.07154, which calls it
    self-attention distillation; Ren et al. 2023 (TinyMIM), arXiv:2301.01296. Widths and numbers of heads may differ;
    nothing is added to the network. The term ends at the teacher's entropy, not at 0.

    Both networks must be plain Vision Transformers. The class token takes part where both have one, other prefix
    tokens never. A teacher's grid of another size is resampled to the student's, bilinearly. The student's compared
    blocks must see all patches at their places: where tokens are merged or dropped before, there is no row of attention
    for each.
    """

    kind = "distillation"
    paper = "Zhang et al. 2022, arXiv:2204.07154; Ren et al. 2023, arXiv:2301.01296"
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"layers": [[1, 2], [3, 3]], "heads": 4, "relations": ["qk", "vv"], "weight": 2.0})
    deployed = False
    Config = AttentionRelationConfig
    compared: Pairs
    """(student block, teacher block); known once `wrap` has seen the networks."""
    class_token: bool
    """Whether both networks have one; known once `wrap` has seen them."""

    def pairs(self, facts: Facts) -> Pairs:
        """(student block, teacher block) of every comparison."""
        return last_pair(facts) if self.config.layers is None else self.config.layers

    def claims(self, facts: Facts) -> Claims:
        """Reads queries, keys and values of both networks, and the student's patches at their places."""
        pairs = self.pairs(facts)
        ours, theirs = [s for s, _ in pairs], [t for _, t in pairs]
        self._check_heads(facts, ours)
        return Claims(
            needs=at_blocks(PROJECTIONS, ours) | at_blocks(GRID, ours) | at_blocks(TEACHER_PROJECTIONS, theirs),
        )

    def _check_heads(self, facts: Facts, blocks: list[int]) -> None:
        heads = self.config.heads
        if heads is None:
            return
        student, teacher = facts.student, facts.teacher
        widths = {f"`{student.model}`": _width(facts, b) for b in blocks if b < student.depth}
        if teacher is not None:
            widths[f"the teacher `{teacher.model}`"] = teacher.num_heads * teacher.head_dim
        for whose, width in widths.items():
            if width % heads:
                problem = f"{heads} heads do not divide the {width} channels of the queries of {whose}"
                way_out = "Write `null` for the largest number that fits."
                raise OptionError(self.name, "heads", problem, f"divisors of {width}", way_out)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Adds nothing; remembers what is compared."""
        assert facts.teacher is not None, "claims ask for a teacher"
        self.compared = self.pairs(facts)
        self.class_token = facts.student.has_class_token and facts.teacher.has_class_token

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `relation`: the mean over pairs."""
        import torch

        from strategies.distillation.feature_distance import grid_size
        from strategies.distillation.relations import joined_heads, relation_cross_entropy

        assert teacher is not None, "claims ask for a teacher"
        met = [("qkv".index(a), "qkv".index(b)) for a, b in self.config.relations]
        entropies = []
        for s, t in self.compared:
            projections = out.projections[s]
            size = grid_size(projections[0, :, 0], out.num_prefix_tokens)
            ours = joined_heads(projections, out.num_prefix_tokens, class_token=self.class_token)
            theirs = joined_heads(
                teacher.projections[t], teacher.num_prefix_tokens, class_token=self.class_token, size=size
            )
            heads = self._heads(projections.shape[2], ours.shape[-1], theirs.shape[-1])
            entropies.append(relation_cross_entropy(ours, theirs, met, heads))
        return {"relation": torch.stack(entropies).mean()}

    def _heads(self, limit: int, *widths: int) -> int:
        """Relation heads for queries of these widths; what pruning leaves is known only here."""
        from strategies.distillation.relations import most_heads

        heads = self.config.heads
        if heads is None:
            return most_heads(limit, *widths)
        if any(width % heads for width in widths):
            raise ValueError(
                f"attention_relation.heads: {heads} heads do not divide queries of {widths[0]} (student) and "
                f"{widths[1]} (teacher) channels, which pruning has left. Way out: `heads: null`."
            )
        return heads

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"relation": self.config.weight}


def _width(facts: Facts, block: int) -> int:
    """Channels of the student's queries in a block."""
    cut = facts.shapes.blocks.get(block)
    return (facts.student.num_heads if cut is None else cut.num_heads) * facts.student.head_dim
