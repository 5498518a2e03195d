"""What strategies hang into the backbone's loop: the signature of each seam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from strategies.attention import Look
    from strategies.backbone import VisionTransformerStudent
    from strategies.state import Output, State


class StateSeam(Protocol):
    """Between two blocks, or before the first: may change the tokens, add prefix tokens, set tokens aside."""

    def __call__(self, state: State) -> State:
        """Return the state that goes on."""
        ...


class AttentionSeam(Protocol):
    """In place of one block's attention."""

    def __call__(self, attn: nn.Module, x: Tensor, state: State) -> Tensor:
        """Map the normed tokens [R, N, D] to the attention's output [R, N, D]."""
        ...


class TokensSeam(Protocol):
    """Between attention and MLP of one block: may change which tokens exist."""

    def __call__(self, state: State, look: Look, track_source: bool) -> State:
        """`look` holds what the strategy claims to need; keep `state.source` up to date if asked."""
        ...


class HalfSeam(Protocol):
    """In place of one half of a block, residual addition included: attention's half, or the MLP's."""

    def __call__(self, block: nn.Module, state: State) -> State:
        """Return the state after this half."""
        ...


class DepthSeam(Protocol):
    """After one block: says which images may leave, and with what answer."""

    def __call__(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits [R, C], and which images leave [R] (bool; ignored in training, where all go on)."""
        ...


class WholeSeam(Protocol):
    """In place of the whole pass: several sizes of the images, or several passes."""

    def __call__(self, student: VisionTransformerStudent, images: Tensor) -> Output:
        """Use `student.embed` and `student.run`."""
        ...


class Companion(Protocol):
    """Runs beside the network in training, on the same images."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return what goes into `Output.readouts`."""
        ...


class Readout(Protocol):
    """At the end of the forward pass, in training: computes what a strategy's losses need from parameters."""

    def __call__(self, out: Output, state: State) -> dict[str, Tensor]:
        """`state.x` are the normed final tokens."""
        ...
