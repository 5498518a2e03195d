"""Token sparsification: small predictors learn which patches can be left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.api import FINAL_TOKENS, TEACHER_TOKENS, Claim, Claims, OptionError
from strategies.dynamic.learned_selection import LearnedSelection, LearnedSelectionConfig, counts
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student


class TokenSparsificationConfig(LearnedSelectionConfig):
    """Options of `token_sparsification`."""

    name: Literal["token_sparsification"] = "token_sparsification"
    """Always `token_sparsification`."""

    token_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the mean squared difference between kept patches and the teacher's, after the final norms; needs a
    teacher of the student's width and patches. 0 = it is not needed."""


class TokenSparsification(LearnedSelection[TokenSparsificationConfig]):
    """Keep the ⌊ρ^s · n⌋ patches that a predictor before the s-th block scores best (DynamicViT).

    The predictor reads each patch (LayerNorm, linear, GELU: z) beside the mean of all that are left:
    [z_1…z_{D/2}, mean of z_{D/2+1}…z_D], then linear D/2, GELU, linear D/4, GELU, linear 2, log-softmax. In training
    the decision is drawn (hard Gumbel-softmax, straight-through) and multiplied with earlier ones; patches that are out
    stay where they are, and attention does not see them. In evaluation the best are gathered, in every image as many.

    The loss is CE + 2 · ratio + ½ · KL + ½ · tokens, where ratio = mean over images and s of (share kept − ρ^s)². The
    paper writes KL(student ‖ teacher); its code and this file compute KL(teacher ‖ student).

    The paper's teacher is the same network before sparsification. A spec says so with a stage before:
    `init: {stage: plain}` and `teacher: {stage: plain}`, where the stage `plain` trains without this strategy. Without
    a teacher write `kl_weight: 0` and `token_weight: 0`; with one of another width `token_weight: 0`.
    """

    paper = "Rao et al. 2021, arXiv:2106.02034"
    examples = (
        {"keep_rate": 0.7, "token_weight": 0.0},
        {"keep_rate": 0.5, "blocks": [0, 2], "kl_weight": 0.0, "token_weight": 0.0},
    )
    Config = TokenSparsificationConfig

    def claims(self, facts: Facts) -> Claims:
        """Besides what selection claims, final tokens of both networks, to compare them."""
        claims, teacher, student = super().claims(facts), facts.teacher, facts.student
        if not self.acting or not self.config.token_weight:
            return claims
        if teacher is not None and student.family == "vit":
            theirs = (teacher.embed_dim, teacher.num_patches) if teacher.family == "vit" else None
            if theirs != (student.embed_dim, student.num_patches):
                raise OptionError(
                    self.name,
                    "token_weight",
                    f"the tokens of the teacher `{teacher.model}` are not comparable to those of `{student.model}`",
                    "0 with this teacher",
                    f"Write 0, or take a teacher with {student.num_patches} patches of width {student.embed_dim}, "
                    "such as the student's own stage before sparsification.",
                )
        needs = claims.needs | {Claim(FINAL_TOKENS), Claim(TEACHER_TOKENS)}
        return Claims(owns=claims.owns, needs=needs, hides=claims.hides)

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put a predictor before each block. With nothing to leave out they rest, frozen."""
        from torch import nn

        from strategies.dynamic.keep_predictor import KeepPredictor, Kept, Select

        n, blocks = facts.student.num_patches, self.blocks(facts.student.depth)
        like = next(student.model.parameters())
        predictors = {block: KeepPredictor(student.model.embed_dim).to(like.device, like.dtype) for block in blocks}
        student.extras[self.name] = nn.ModuleDict({str(b): p for b, p in predictors.items()})
        if not self.acting:
            student.extras[self.name].requires_grad_(False)
            return
        for block, num in zip(blocks, counts(self.config.keep_rate, len(blocks), n), strict=True):
            student.entry[block] = Select(student, self.name, predictors[block], num)
        rates = tuple(self.config.keep_rate**s for s in range(1, len(blocks) + 1))
        student.readouts[self.name] = Kept(self.name, rates, n)

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """Besides those of selection, `tokens`: MSE between kept patches and the teacher's."""
        from strategies.dynamic.keep_predictor import token_difference

        terms = super().losses(out, teacher, target)
        if self.acting and self.config.token_weight:
            assert teacher is not None, "`claims` asks for the teacher's tokens"
            assert out.tokens is not None, "`claims` asks for the final tokens"
            assert teacher.tokens is not None, "`claims` asks for the teacher's tokens"
            P, own, hint = out.num_prefix_tokens, out.tokens, teacher.tokens[:, teacher.num_prefix_tokens :]
            keep = out.readouts[self.name]["keep"]
            terms["tokens"] = token_difference(own[:, P:], hint, keep[:, P:])
        return terms

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {**super().weights(), "tokens": self.config.token_weight}
