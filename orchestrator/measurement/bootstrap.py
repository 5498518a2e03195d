"""How sure a median is: percentile bootstrap over blocks (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).

Blocks are drawn and not single samples, because samples of one block share the moment they were taken in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
MIN_BLOCKS = 6
"""With fewer, not even the interval from the smallest to the largest holds the median with 95 %: 1 − 2·2⁻⁶ = 0.97, but
1 − 2·2⁻⁵ = 0.94."""


def interval_of_median(blocks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % confidence interval of the median of all samples; `None` with fewer than `MIN_BLOCKS` blocks.

    The generator is seeded: the same samples have the same interval.

    Args:
        blocks: samples, block by block; no block is empty.
    """
    if len(blocks) < MIN_BLOCKS:
        return None
    generator = np.random.default_rng(0)
    parts = [np.asarray(block, dtype=float) for block in blocks]
    drawn = generator.integers(0, len(parts), size=(RESAMPLES, len(parts)))
    medians = [float(np.median(np.concatenate([parts[i] for i in resample]))) for resample in drawn]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail]).tolist()
    return low, high
