"""Raw samples and their statistics, which stay together from the clock to the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_SAMPLES = 200
"""Raw samples kept in a metric row."""


def thinned(samples: Sequence[float]) -> list[float]:
    """At most `MAX_SAMPLES` of the samples, evenly spaced, first and last among them."""
    if len(samples) <= MAX_SAMPLES:
        return list(samples)
    last = len(samples) - 1
    return [samples[round(i * last / (MAX_SAMPLES - 1))] for i in range(MAX_SAMPLES)]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; from two samples on), 5th, 50th and 95th percentile, and count."""
    if not samples:
        return {}
    p5, p50, p95 = np.percentile(samples, [5, 50, 95]).tolist()
    statistics = {"mean": math.fsum(samples) / len(samples), "p5": p5, "p50": p50, "p95": p95}
    if len(samples) > 1:
        statistics["std"] = float(np.std(samples, ddof=1))
    return {**statistics, "count": float(len(samples))}
