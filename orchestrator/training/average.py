"""The moving average of a network's weights."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class WeightAverage(ModelEmaV3):
    """timm's average, for networks whose layers may share weights too: average ← d · average + (1 − d) · weights.

    timm goes through the keys, under which a tensor that several layers share stands once a layer; it would be moved as
    often, so that its decay were d to that power. Here each tensor is moved once.
    """

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move floating tensors towards the network's, and copy the others."""
        pairs = list(zip(_distinct(self.module), _distinct(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        self._foreach_lerp_([mine for mine, _ in moving], [theirs for _, theirs in moving], weight=1.0 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _distinct(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are kept, each once."""
    tensors: dict[int, Tensor] = {id(v): v for v in module.state_dict(keep_vars=True).values()}
    return [tensor.detach() for tensor in tensors.values()]
