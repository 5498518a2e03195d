"""Linear attention: cost grows with the number of tokens, not with its square."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt

from specs.strategy import StrategyConfig
from strategies.api import Claims, Strategy
from strategies.blocks import checked
from strategies.component.replaced_attention import remove_attention, replacing
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student


class LinearAttentionConfig(StrategyConfig):
    """Options of `linear_attention`."""

    name: Literal["linear_attention"] = "linear_attention"
    """Always `linear_attention`."""

    kind: Literal["additive", "elu", "focused"] = "elu"
    """`elu`: keys weigh values through φ(x) = elu(x) + 1. `focused`: through a sharper φ, and a convolution of the
    values brings back what differs between neighbours. `additive`: one pooled query meets every key, without values."""

    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks with linear attention, counted from 0; `null` = all."""


class LinearAttention(Strategy[LinearAttentionConfig]):
    """Replace softmax attention by one that is linear in the number of tokens.

    `elu` (Katharopoulos et al. 2020, arXiv:2006.16236): y_i = φ(q_i)·Σ_j φ(k_j)ᵀ v_j / φ(q_i)·Σ_j φ(k_j), with
    φ(x) = elu(x) + 1. 4·N·D² + 2·N·D·E MACs a block (N tokens, width D, head width E).

    `focused` (Han et al. 2023, arXiv:2308.00442): the same with φ(x) = ‖r‖ / ‖r³‖ · r³, r = relu(x), cubes
    element-wise, plus a depth-wise 5×5 convolution of the values over the patches, whose weights all heads of a block
    share. It needs the whole patch grid; prefix tokens take no part in the convolution. 25·n·D MACs more (n patches).

    `additive` (Shaker et al. 2023, arXiv:2303.15446): α = Q̂·w/√D, scaled to length 1 over the tokens; q = Σ_i α_i Q̂_i;
    y = T(q ⊙ K̂) + Q̂, projected. Q̂ and K̂ are normalised rows, as in the authors' code (the paper says so of Q̂ alone).
    4·N·D² + N·D MACs a block.

    Pretrained queries, keys, values and projection are used where the formula has them. `additive` has no values: its
    weights move to the strategy, T starts as the identity, and what is left of the attention leaves the network. `elu`
    and `additive` work on merged, masked and packed tokens: a token that stands for s patches counts s times.
    """

    kind = "component"
    paper = (
        "Katharopoulos et al. 2020, arXiv:2006.16236; Han et al. 2023, arXiv:2308.00442; "
        "Shaker et al. 2023, arXiv:2303.15446"
    )
    neutral: ClassVar = {"blocks": []}
    examples = ({}, {"kind": "focused", "blocks": [1, 2]}, {"kind": "additive", "blocks": [0, 3]})
    Config = LinearAttentionConfig

    def linear(self, depth: int) -> tuple[int, ...]:
        """Blocks with linear attention.

        Raises:
            OptionError: if a block does not exist.
        """
        wanted = range(depth) if self.config.blocks is None else self.config.blocks
        return checked(self.name, "blocks", wanted, depth, "Write `null` for all blocks.")

    def claims(self, facts: Facts) -> Claims:
        """Own the attention of these blocks; `focused` must see the whole grid."""
        kind = self.config.kind
        return replacing(
            self.linear(facts.student.depth), grid=kind == "focused", turns=False, weights_gone=kind == "additive"
        )

    def wrap(self, student: Student, facts: Facts) -> None:
        """Put the seams in the attention's place."""
        from torch import nn

        from strategies.component.additive_attention import Additive
        from strategies.component.kernel_attention import Elu, Focused

        blocks = self.linear(facts.student.depth)
        like = next(student.model.parameters())
        modules: dict[int, nn.Module] = {}
        for b in blocks:
            block = student.model.blocks[b]
            if self.config.kind == "elu":
                student.attention[b] = Elu()
            elif self.config.kind == "focused":
                modules[b] = student.attention[b] = Focused(block.attn.head_dim).to(like.device, like.dtype)
            else:
                modules[b] = student.attention[b] = Additive(block.attn)
                remove_attention(block)
        if modules:
            student.extras[self.name] = nn.ModuleDict({str(b): module for b, module in modules.items()})
