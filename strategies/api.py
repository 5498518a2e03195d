"""The strategy interface. Importing this module loads no torch: options and claims decide at planning time.

A strategy is one file: typed `Config`, `claims`, and optional hooks. Tensor code is imported inside the
hooks (or lives in a module of formulas beside the file), so that planning 10,000 combinations costs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from specs.strategy import StrategyConfig
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Output, Student
    from strategies.gradients import Gradients
    from strategies.surgery import Cut
    from strategies.ways_out import WaysOut

C = TypeVar("C", bound=StrategyConfig)
Kind = Literal["component", "dynamic", "distillation"]

# What can be claimed. Seams are owned; what is visible is needed, or hidden from others.
INPUT = "input"
"""Seam, whole network: the images' size, or how often they pass."""
EMBEDDING = "embedding"
"""Seam, whole network: positions, and tokens added in front."""
ATTENTION = "attention"
"""Seam, per block: replaces the attention."""
POSITIONS = "positions"
"""Seam, per block: tells the tokens before the block where they are."""
ROTATION = "rotation"
"""Seam, per block: turns queries and keys by position."""
TOKENS = "tokens"
"""Seam, per block: changes which tokens exist, between attention and MLP or before the block."""
MLP = "mlp"
"""Seam, per block: replaces the MLP's half of the block."""
DEPTH = "depth"
"""Seam, per block: decides after the block which images go on."""
EXITS = "exits"
"""Visible, whole network: answers after blocks before the last; only where a strategy offers them."""
SHAPES = "shapes"
"""Seam, per block: physically removes heads, or channels of the attention's weights. Without a block: the inner widths
of other networks."""
MLP_SHAPES = "mlp_shapes"
"""Seam, per block: physically removes MLP channels."""
WIDTH = "width"
"""Seam, whole network: narrows the tokens."""
BLOCKS = "blocks"
"""Seam, whole network: removes blocks."""
MATRICES = "matrices"
"""Seam, per block: stores the weights of attention's linear layers in another form (factors, sharing, sparsity)."""
MLP_MATRICES = "mlp_matrices"
"""Seam, per block: stores the weights of the MLP's linear layers in another form."""
MIXING = "mixing"
"""Seam, per block: mixes heads before and after the softmax."""
ALIKE = "alike"
"""Visible, per block: the block is as wide inside as the other blocks are."""
KEYS = "keys"
"""Visible, per block: the attention's keys, at the token seam."""
CLASS_ATTENTION = "class_attention"
"""Visible, per block: how the class token attends to the others, at the token seam."""
PROJECTIONS = "projections"
"""Visible, per block: queries, keys and values, for losses."""
GRID = "grid"
"""Visible, per block: every patch enters the block, at its place, none merged, dropped or packed."""
PLACED = "placed"
"""Visible, per block: dense tokens, every patch among them at its place, reach the block; what changes at its entry is
yet to come. Hidden with `GRID` and with `DENSE`, unless the strategy that hides these at its own entry offers it."""
GRID_SIZE = "grid_size"
"""Visible, whole network: the patch grid always has as many rows and columns as the network was built for."""
DENSE = "dense"
"""Visible, per block: every image enters the block with equally many tokens, none of them masked."""
TAP = "tap"
"""Visible, per block: the tokens after the block, on the full patch grid."""
FINAL_TOKENS = "final_tokens"
"""Visible, whole network: the tokens after the final norm, on the full patch grid."""
DENSE_LOGITS = "dense_logits"
"""Visible, whole network: the head's answer to each patch alone."""
CLASS_TOKEN = "class_token"
"""Visible, whole network."""
DISTILLATION_TOKEN = "distillation_token"
"""Seam, whole network: the second prefix token and its head."""
TEACHER_LOGITS = "teacher.logits"
"""Visible, whole network: the teacher's class logits."""
TEACHER_TAP = "teacher.tap"
"""Visible, per teacher block: the teacher's tokens after the block."""
TEACHER_PROJECTIONS = "teacher.projections"
"""Visible, per teacher block: its queries, keys and values."""
TEACHER_TOKENS = "teacher.final_tokens"
"""Visible, whole network: the teacher's tokens after its final norm."""
TEACHER_DENSE_LOGITS = "teacher.dense_logits"
"""Visible, whole network: the teacher's answer to each place alone."""


class Claim(NamedTuple):
    """Something in the network, at one block or (`None`) in the whole network."""

    what: str
    block: int | None = None
    teacher: int = 0
    """Of claims on a teacher (`teacher.*`): which one, counted from 0 in the spec's order."""


def at_blocks(what: str, blocks: Any) -> frozenset[Claim]:
    """The same claim at several blocks."""
    return frozenset(Claim(what, int(b)) for b in blocks)


@dataclass(frozen=True)
class Claims:
    """What a strategy does to a network, stated before anything is touched."""

    owns: frozenset[Claim] = frozenset()
    """Changed by this strategy alone: two owners of the same claim are a conflict."""
    needs: frozenset[Claim] = frozenset()
    """Read by this strategy: it must exist, and no other strategy may hide it."""
    hides: frozenset[Claim] = frozenset()
    """No longer there for others once this strategy acts."""
    offers: frozenset[Claim] = frozenset()
    """There for others because this strategy acts: what networks do not have by themselves."""


class OptionError(ValueError):
    """An option that this network cannot take.

    Attributes:
        strategy, option: where.
        allowed: the allowed range, in words.
        way_out: what to write instead.
    """

    def __init__(self, strategy: str, option: str, problem: str, allowed: str, way_out: str) -> None:
        super().__init__(f"{strategy}.{option}: {problem}; allowed: {allowed}. {way_out}")
        self.strategy, self.option, self.problem = strategy, option, problem
        self.allowed, self.way_out = allowed, way_out

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, ...]]:
        return type(self), (self.strategy, self.option, self.problem, self.allowed, self.way_out)


class Strategy(Generic[C]):
    """One idea from the literature. The base has no logic: every hook does nothing.

    One object serves one stage. Subclasses set the class attributes and `Config`, and override what they need.
    """

    kind: ClassVar[Kind]
    paper: ClassVar[str]
    """Authors, year and arXiv number."""
    version: ClassVar[int] = 1
    """Raised whenever the same options give other numbers; part of every stage digest."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options with which the network is the plain one, bit for bit; `None` if there are none."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that work on a ViT of depth 4, width 48, 3 heads, 64 patches: for contract tests and documentation."""
    beside: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Strategies that this one cannot do without → their options in its examples."""
    once: ClassVar[bool] = False
    """`wrap` changes shapes once and for all; a network loaded from a checkpoint already has it (pruning)."""
    late: ClassVar[bool] = False
    """Of those that act once: acts after the others, on what they left (factors of what pruning left)."""
    deployed: ClassVar[bool] = True
    """Its modules belong to the network as deployed; `False` for what only training needs (projectors)."""
    knob: ClassVar[str | None] = None
    """Option with a number that can be changed after training, with the same weights (a threshold, a rate of tokens);
    `None` if there is none. The trained network is then measured along `sweep`: it is a curve, not a point."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Options with which training itself finds the knob's setting (`ways_out`); `null` in a network whose knob is
    turned."""
    Config: type[StrategyConfig]

    def __init__(self, config: C) -> None:
        self.config = config
        self.name = config.name

    def claims(self, facts: Facts) -> Claims:
        """State what this strategy owns, needs and hides in this network. Pure; loads no torch.

        Raises:
            OptionError: if an option does not fit the network (a block that does not exist, no token left, …).
        """
        return Claims()

    def leaves(self, facts: Facts) -> Facts:
        """What the network is like once this strategy has changed its shapes for good (`once`). Others that act in the
        same stage, and later stages, are planned for that. Pure; loads no torch; raises nothing."""
        return facts

    def moments(self) -> tuple[float, ...]:
        """Epochs of the stage after which the loop asks for a `cut`, ascending; fractions are fine. Between two of
        them the network trains on. Pure; loads no torch."""
        return ()

    def calibration(self) -> int:
        """Images whose gradients a `cut` reads; 0 = none."""
        return 0

    def compares_images(self) -> bool:
        """Whether what it computes depends on which images share a micro-batch. Its stage is then another one for
        another size of micro-batch. Pure; loads no torch."""
        return False

    def cut(self, student: Student, facts: Facts, moment: int, gradients: Gradients | None) -> Cut | None:
        """Say what stays of the network; the loop cuts it, its average and the optimiser's state, and composes it anew.

        Args:
            student: as it is now; not to be changed.
            facts: what `wrap` saw: the network as the stage began.
            moment: position in `moments`.
            gradients: of the loss at the timm network's parameters, where `calibration` asks for images.

        Returns:
            `None` if everything stays.
        """
        return None

    def sweep(self, facts: Facts) -> Sequence[float]:
        """Settings of the knob that show what it does to this network, from cheap to plain: about five. Pure; loads no
        torch. The trained setting is always added, and what `claims` refuses is left out."""
        return ()

    def wrap(self, student: Student, facts: Facts) -> None:
        """Attach modules at the student's seams, once, before compile and DDP. Parameters go into
        `student.extras[self.name]`.

        Args:
            student: the network, changed in place; what hangs at its seams must survive `copy.deepcopy` (modules or
                plain objects, no closures), because the average of the weights is kept in a deep copy.
            facts: what `claims` saw, for example the teacher's widths.
        """

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """Loss terms: name → scalar, unweighted. Pure; owns no parameters.

        Args:
            out: the student's output, in training mode.
            teacher: the teacher's output on the same images, detached; `None` without teacher.
            target: class indices [B] (int64), or class probabilities [B, C] with mixup, CutMix or smoothing.
        """
        return {}

    def weights(self) -> dict[str, float]:
        """Weight of each loss term, plus optionally `task`: the factor on the task's cross-entropy. Factors of several
        strategies multiply."""
        return {}

    def at(self, student: Student, progress: float) -> None:
        """Set knobs for progress in [0, 1] of the stage. Called before every optimiser step and, with 1, before
        evaluation. A continuous knob is a 0-d buffer, so that a compiled graph serves its whole range."""

    def after_backward(self, student: Student, progress: float) -> None:
        """Look at the gradients of an optimiser step, complete and averaged over workers, or change them; the update
        comes next. Called once a step, with the progress that `at` was given. In float16 they are scaled up."""

    def ways_out(self, student: Student) -> WaysOut | None:
        """How images leave this network, where one of `targets` is set; `None` otherwise. Asked for at the end of the
        stage, of the network that is kept, which then gets its threshold (`ways_out.py`)."""
        return None

    def measure(self, out: Output) -> dict[str, float]:
        """What the strategy reports of one evaluation batch, as means over its images, for example `tokens_kept`."""
        return {}
