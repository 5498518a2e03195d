"""A classifier of single patches, in training only.

Shapes: B images, P prefix tokens, n patches, D width, C classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from strategies.state import Output, State


class PatchHead(nn.Module):
    """A linear layer on the final tokens of the patches (the auxiliary head of LV-ViT, arXiv:2104.10858)."""

    def __init__(self, model: Any) -> None:
        """`model` is a timm network; nothing of it is kept."""
        super().__init__()
        like: Tensor = next(model.parameters())
        self.fc = nn.Linear(model.num_features, model.num_classes, device=like.device, dtype=like.dtype)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, out: Output, state: State) -> dict[str, Tensor]:
        """`answers`: logits of each patch [B, n, C], on the full grid."""
        assert out.tokens is not None, "claims ask for the final tokens"
        return {"answers": self.fc(out.tokens[:, state.num_prefix_tokens :])}
