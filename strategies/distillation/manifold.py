"""Manifold distillation: the student's patches learn to lie to one another as the teacher's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import TAP, TEACHER_TAP, Claims, Strategy, at_blocks
from strategies.distillation.pairs import Pairs, outer_thirds, refuse_twice
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output

PARTS = ("intra", "inter", "random")


class ManifoldConfig(StrategyConfig):
    """Options of `manifold`."""

    name: Literal["manifold"] = "manifold"
    """Always `manifold`."""

    pairs: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)] | None = None
    """Blocks compared: [[student block, teacher block], ...], both from 0. Hierarchical networks count feature stages.
    `null` = the first and the last third of the blocks, as published for 12 blocks."""

    weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (4.0, 0.1, 0.2)
    """Weights of the three terms beside the task's cross-entropy, which keeps weight 1: patches of one image, patches
    at one place in all images, random patches. All 0 = no distillation."""

    samples: PositiveInt = 192
    """Random patches of the third term, drawn anew in every step from those that a worker has in a micro-batch."""

    @model_validator(mode="after")
    def _each_pair_once(self) -> ManifoldConfig:
        refuse_twice("pairs", self.pairs)
        return self


class Manifold(Strategy[ManifoldConfig]):
    """loss = CE(student, label) + Σ weight · mean over pairs of mean (student's cosine − teacher's cosine)².

    Cosines are those between two patches: of one image (`intra`), of two images at the same place (`inter`), or of
    random ones (`random`); the second and third compare the images of a micro-batch on one worker, so they depend on
    its size. Cosines have no width, so nothing is projected and nothing added to the network. Hao et al. 2022,
    arXiv:2107.01378, whose answers of the teacher are the strategy `response` or `distillation_token` here.

    Tokens are those between two blocks, without prefix tokens. A teacher's grid of another size is resampled to the
    student's, bilinearly.
    """

    kind = "distillation"
    paper = "Hao et al. 2022, arXiv:2107.01378"
    neutral: ClassVar = {"weights": [0.0, 0.0, 0.0]}
    examples = ({}, {"pairs": [[1, 1], [3, 2]], "weights": [1.0, 1.0, 0.5], "samples": 32})
    deployed = False
    Config = ManifoldConfig
    compared: Pairs
    """(student block, teacher block); known once `wrap` has seen the networks."""

    def pairs(self, facts: Facts) -> Pairs:
        """(student block, teacher block) of every comparison."""
        return outer_thirds(facts) if self.config.pairs is None else self.config.pairs

    def claims(self, facts: Facts) -> Claims:
        """Reads the student's and the teacher's tokens after the paired blocks."""
        pairs = self.pairs(facts)
        return Claims(needs=at_blocks(TAP, (s for s, _ in pairs)) | at_blocks(TEACHER_TAP, (t for _, t in pairs)))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Adds nothing; remembers the pairs."""
        self.compared = self.pairs(facts)

    def compares_images(self) -> bool:
        """The second and third term do."""
        return any(self.config.weights[1:])

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """`intra`, `inter` and `random`, each the mean over pairs."""
        import torch

        from strategies.distillation.feature_distance import grid_size, grid_tokens
        from strategies.distillation.gram_distance import gram_distances

        assert teacher is not None, "claims ask for a teacher"
        distances = []
        for s, t in self.compared:
            ours = grid_tokens(out.features[s], out.num_prefix_tokens)
            size = grid_size(out.features[s], out.num_prefix_tokens)
            theirs = grid_tokens(teacher.features[t], teacher.num_prefix_tokens, size=size)
            distances.append(gram_distances(ours, theirs, self.config.samples))
        return {part: torch.stack([d[part] for d in distances]).mean() for part in PARTS}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return dict(zip(PARTS, self.config.weights, strict=True))
