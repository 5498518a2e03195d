"""The interval of a median, against its exact distribution and by its coverage."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from orchestrator.measurement.bootstrap import MIN_BLOCKS, RESAMPLES, interval_of_median


def test_all_resamples_of_six_values() -> None:
    """Six values have 6⁶ resamples: the ends must be their 2.5th and 97.5th percentile, up to the error of drawing."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    medians = np.median(np.array(list(product(values, repeat=6))), axis=1)
    low, high = interval_of_median([[v] for v in values]) or (0.0, 0.0)
    error = 3 * np.sqrt(0.025 * 0.975 / RESAMPLES)
    for end, share in ((low, 0.025), (high, 0.975)):
        assert np.mean(medians < end) - error <= share <= np.mean(medians <= end) + error
    assert low < high


def test_coverage_of_a_known_median() -> None:
    """Of 120 samples from a skewed distribution with median 1, about 95 % of the intervals hold 1."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(120):
        low, high = interval_of_median(np.exp(generator.normal(0, 0.3, size=(30, 1))).tolist()) or (0, 0)
        held += low <= 1 <= high
    assert 0.90 <= held / 120 <= 0.99


def test_blocks_are_drawn_and_not_samples() -> None:
    """Within a block all samples are equal: ten copies of each tell no more than one, and the interval is the same."""
    values = np.random.default_rng(5).normal(10, 1, size=21)
    once = interval_of_median([[v] for v in values])
    copies = interval_of_median([[v] * 10 for v in values])
    apart = interval_of_median([[v] for v in values for _ in range(10)])
    assert copies == pytest.approx(once)
    assert apart is not None
    assert copies is not None
    assert apart[1] - apart[0] < 0.6 * (copies[1] - copies[0])


def test_too_few_blocks_have_none() -> None:
    assert interval_of_median([[1.0]] * (MIN_BLOCKS - 1)) is None
    assert interval_of_median([[1.0]] * MIN_BLOCKS) == (1.0, 1.0)
    blocks = [[1.0, 5.0], [2.0], [3.0, 9.0], [4.0], [0.5], [7.0]]
    assert interval_of_median(blocks) == interval_of_median(blocks), "the same samples, the same interval"
