"""Token merging: the most similar token pairs become one between attention and MLP."""

from __future__ import annotations

from typing import Literal

from strategies.dynamic.merging import Merging, MergingConfig


class TokenMergingConfig(MergingConfig):
    """Options of `token_merging`."""

    name: Literal["token_merging"] = "token_merging"
    """Always `token_merging`."""


class TokenMerging(Merging[TokenMergingConfig]):
    """Merge the r most similar token pairs of every block (ToMe).

    Similarity is the cosine between the tokens' attention keys, averaged over heads. A merged token is the mean of its
    patches and attracts attention in proportion to their number. There is no loss and nothing to train; gradients flow
    through the tokens, not through the matching. Class, distillation and register tokens are never merged.
    """

    paper = "Bolya et al. 2023, arXiv:2210.09461"
    examples = ({"r": 8}, {"r": [0, 12, 12, 4]}, {"r": 6, "inflect": -0.5, "blocks": [1, 2, 3], "prop_attn": False})
    Config = TokenMergingConfig
