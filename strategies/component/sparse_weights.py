"""Sparse weights: most weights of the linear layers are zero, and training looks for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from specs.strategy import StrategyConfig
from strategies.api import Claims, OptionError, Strategy
from strategies.blocks import checked
from strategies.component.block_matrices import PARTS, Part, matrix_claims, names_of, sizes_of
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Output, Student


class SparseWeightsConfig(StrategyConfig):
    """Options of `sparse_weights`."""

    name: Literal["sparse_weights"] = "sparse_weights"
    """Always `sparse_weights`."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the weights of all these layers together that is kept, the others are 0; 1 = all."""

    distribution: Literal["erk", "uniform"] = "erk"
    """What each layer keeps. `erk`: smaller layers keep more, in proportion to (inputs + outputs) / (inputs · outputs).
    `uniform`: all the same share."""

    update_every: PositiveInt = 100
    """Optimiser steps between two exchanges of weights."""

    exchange: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the kept weights that the first exchange replaces; falls to 0 along half a cosine. 0 = the weights that
    are kept at first stay for good."""

    until: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the stage in which weights are exchanged."""

    drop: Literal["magnitude"] = "magnitude"
    """Who goes: the kept weights of the smallest magnitude."""

    grow: Literal["gradient"] = "gradient"
    """Who comes: the weights that are 0 where the loss's gradient is largest in magnitude. They start from 0."""

    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """`2:4`: of every four inputs of an output in a row exactly two weights are kept, the form that sparse tensor
    cores read; needs `density: 0.5`."""

    what: tuple[Part, ...] = Field(default=PARTS, min_length=1)
    """Which layers. `qkv`: the one that makes queries, keys and values. `proj`: the one after attention. `mlp`: those
    of the MLP."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks with sparse weights, counted from 0; `null` = all."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> SparseWeightsConfig:
        if self.pattern == "2:4" and self.density != 0.5:
            raise ValueError("`pattern: 2:4` keeps half of the weights; write `density: 0.5` with it")
        if len(set(self.what)) != len(self.what):
            raise ValueError("`what` names the same layer twice; write for example [qkv, proj, mlp]")
        return self


class SparseWeights(Strategy[SparseWeightsConfig]):
    """Keep a share of the weights at 0, and exchange which in training (SViTE, unstructured).

    At first each layer keeps its largest weights: ERK densities d_l = ε·(n_l + m_l)/(n_l·m_l), ε such that all layers
    together keep `density`. Every `update_every` steps a share ½·α·(1 + cos(π·t/T)) of each layer's kept weights, those
    of the smallest magnitude, is dropped, and as many are kept anew where the gradient of the step, averaged over
    workers, is largest. Weights that are not kept get no update in between and are 0 in every forward pass.

    The network stays made of dense matrices: memory, MACs and time are those of the plain network, because dense
    hardware multiplies zeros like other numbers. What is gained is a smaller file after compression, and the zeros for
    hardware that skips them. With `pattern: 2:4`, every exported matrix is in the form that
    `torch.sparse.to_sparse_semi_structured` takes, for sparse tensor cores. `sparse_weights.density` in the results is
    what is kept. Patch embedding, classifier, biases and norms stay dense. The masks are saved as `extras`.
    """

    kind = "component"
    paper = "Chen et al. 2021, arXiv:2106.04533"
    neutral: ClassVar = {"density": 1.0}
    examples = ({}, {"pattern": "2:4"}, {"density": 0.3, "what": ["mlp"], "blocks": [1, 2], "distribution": "uniform"})
    Config = SparseWeightsConfig

    def __init__(self, config: SparseWeightsConfig) -> None:
        super().__init__(config)
        self.density = config.density

    def sparse(self, depth: int) -> tuple[int, ...]:
        """Blocks with sparse weights.

        Raises:
            OptionError: if a block does not exist.
        """
        if self.config.density == 1:
            return ()
        wanted = range(depth) if self.config.blocks is None else self.config.blocks
        return checked(self.name, "blocks", wanted, depth, "Write `null` for all blocks.")

    def claims(self, facts: Facts) -> Claims:
        """Own the form of these layers' weights."""
        what = self.config.what
        if facts.student.family != "vit":
            return Claims(owns=matrix_claims(what, (0,)))  # which such a network does not have
        blocks = self.sparse(facts.student.depth)
        for b in blocks if self.config.pattern == "2:4" else ():
            odd = [f"{name} of block {b} has {m} inputs" for name, m, _ in sizes_of(facts, b, what) if m % 4]
            if odd:
                way_out = "Write `pattern: unstructured`, or leave that layer out of `what`."
                raise OptionError(self.name, "pattern", odd[0], "2:4 for multiples of 4 inputs", way_out)
        if facts.shapes.ranks and any(f"blocks.{b}.{n}" in facts.shapes.ranks for b in blocks for n in _names(what)):
            raise OptionError(
                self.name,
                "what",
                "an earlier stage stored layers as factors",
                "layers that are whole matrices",
                "Way out: leave them out of `what`, name other `blocks`, or keep `low_rank` or `sparse_weights`.",
            )
        return Claims(owns=matrix_claims(what, blocks))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Choose who is kept at first; a restored network's masks are loaded afterwards."""
        from strategies.component.sparse_masks import SparseMasks

        model, c = student.model, self.config
        blocks = self.sparse(facts.student.depth)
        names = [f"blocks.{b}.{name}" for b in blocks for name in names_of(model.blocks[b], c.what)]
        if names:
            masks = SparseMasks(model, names, c.density, c.distribution, c.pattern)
            student.extras[self.name] = masks
            self.density = masks.density() if not masks.steps.is_meta else c.density

    def at(self, student: Student, progress: float) -> None:
        """Set to 0 what is not kept."""
        if self.name in student.extras:
            masks: Any = student.extras[self.name]
            masks.zero(student.model)

    def after_backward(self, student: Student, progress: float) -> None:
        """Exchange weights where it is time, and stop gradients of what is not kept."""
        if self.name in student.extras:
            masks: Any = student.extras[self.name]
            masks.after_backward(student.model, progress, self.config)

    def measure(self, out: Output) -> dict[str, float]:
        """`density`: share of these layers' weights that is kept."""
        return {"density": self.density}


def _names(what: tuple[Part, ...]) -> list[str]:
    layers = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.fc1", "mlp.fc2")}
    return [name for part in what for name in layers[part]]
