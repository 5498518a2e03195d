"""Rows of what the clock says: throughput at each batch size, latency at batch 1, and their ratios to the baseline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.measurement import timing
from orchestrator.measurement.bootstrap import interval_of_median
from orchestrator.measurement.guard import Guarded, Limits, Watch, guarded
from orchestrator.measurement.rows import BASELINE, STUDENT
from orchestrator.measurement.runnable import runnable
from orchestrator.measurement.samples import summary
from orchestrator.measurement.subject import Bench
from orchestrator.measurement.watch import watch_of

PERCENTILES = {"latency_ms": 50, "latency_p90_ms": 90, "latency_p95_ms": 95, "latency_p99_ms": 99}
LATENCIES = (*PERCENTILES, "latency_ratio")
THROUGHPUTS = ("throughput", "throughput_ratio")
TIMED = (*THROUGHPUTS, *LATENCIES)
"""Metrics that are taken here."""

MAX_WIDTH = 0.04
"""Width of a ratio's interval, as a share of the ratio, at which timing need not go on beyond the time given."""

Blocks = dict[str, list[timing.Block]]


def take_times(bench: Bench, does_not_fit: Mapping[str, set[int]]) -> None:
    """Time the networks on the bench in alternation.

    Args:
        does_not_fit: network → batch sizes that memory is known not to hold.
    """
    wanted = bench.rows.wanted
    if wanted.intersection(LATENCIES):
        _latency(bench, *_timed(bench, 1, does_not_fit, one_by_one=True))
    if wanted.intersection(THROUGHPUTS):
        for batch_size in dict.fromkeys(bench.settings.batch_sizes):
            _throughput(bench, batch_size, *_timed(bench, batch_size, does_not_fit, one_by_one=False))


def calls_needed(percentile: int) -> int:
    """Calls from which on a percentile means something: at least one of them lies beyond it on average."""
    return 100 // (100 - percentile)


def _timed(
    bench: Bench, batch_size: int, does_not_fit: Mapping[str, set[int]], *, one_by_one: bool
) -> tuple[Guarded[Blocks] | None, dict[str, str]]:
    """Guarded blocks of the networks that run, and the reasons of those that do not; nothing without the student."""
    networks, why = runnable(bench, batch_size, does_not_fit)
    if STUDENT not in networks:
        return None, why
    batches, settings = bench.batches(batch_size), bench.settings
    few = calls_needed(max(PERCENTILES.values())) if one_by_one else timing.MIN_BLOCKS * len(batches)

    def enough(blocks: Mapping[str, Sequence[timing.Block]]) -> bool:
        return sum(b.calls for b in blocks[STUDENT]) >= few and _narrow(_ratios(blocks, len(batches), one_by_one))

    def take(watch: Watch) -> Blocks:
        return timing.time_alternately(
            networks, batches, settings.seconds, one_by_one=one_by_one, enough=enough, between=watch.look
        )

    def speeds(blocks: Blocks) -> list[float]:
        """Of the baseline, which costs the same for every image; without one, of the student."""
        return [b.calls / b.total for b in blocks.get(BASELINE) or timing.whole_passes(blocks[STUDENT], len(batches))]

    limits = Limits.on(os.cpu_count() or 1, settings.max_drift)
    return guarded(take, speeds, watch_of(settings.device), limits, settings.attempts), why


def _latency(bench: Bench, timed: Guarded[Blocks] | None, why: Mapping[str, str]) -> None:
    rows, conditions = bench.rows, bench.conditions | {"batch_size": 1}
    if timed is None:
        for name in PERCENTILES:
            rows.add(name, None, conditions, reason=why[STUDENT])
        rows.add_paired_ratio("latency_ratio", None, conditions, why)
        return
    seen, unreliable = timed.observations, timed.unreliable
    ms = [1000 * seconds for block in timed.result[STUDENT] for seconds in block.seconds]
    for name, percentile in PERCENTILES.items():
        needed = calls_needed(percentile)
        few = f"needs at least {needed} calls; {len(ms)} fitted into the time" if len(ms) < needed else None
        value = None if few else float(np.percentile(ms, percentile))
        rows.add(name, value, conditions, ms, reason=few, parts=seen, unreliable=unreliable)
    ratios = _ratios(timed.result, 1, one_by_one=True)
    rows.add_paired_ratio("latency_ratio", ratios, conditions, why, parts=seen, unreliable=unreliable)


def _throughput(bench: Bench, batch_size: int, timed: Guarded[Blocks] | None, why: Mapping[str, str]) -> None:
    rows, conditions = bench.rows, bench.conditions | {"batch_size": batch_size}
    if timed is None:
        rows.add("throughput", None, conditions, reason=why[STUDENT])
        rows.add_paired_ratio("throughput_ratio", None, conditions, why)
        return
    seen, unreliable = timed.observations, timed.unreliable
    num_batches = len(bench.batches(batch_size))
    passes = timing.whole_passes(timed.result[STUDENT], num_batches)
    speed = [block.calls * batch_size / block.total for block in passes]
    rows.add("throughput", summary(speed)["p50"], conditions, speed, parts=seen, unreliable=unreliable)
    ratios = _ratios(timed.result, num_batches, one_by_one=False)
    rows.add_paired_ratio("throughput_ratio", ratios, conditions, why, parts=seen, unreliable=unreliable)


def _ratios(
    blocks: Mapping[str, Sequence[timing.Block]], num_batches: int, one_by_one: bool
) -> list[list[float]] | None:
    """Ratios of neighbours, block by block: the student's times over the baseline's, call by call; or its speed over
    the baseline's in whole passes over the batches. `None` without a baseline."""
    if BASELINE not in blocks:
        return None
    if one_by_one:
        pairs = zip(blocks[STUDENT], blocks[BASELINE], strict=True)
        return [[x / y for x, y in zip(a.seconds, b.seconds, strict=True)] for a, b in pairs]
    ours, theirs = (timing.whole_passes(blocks[who], num_batches) for who in (STUDENT, BASELINE))
    return [[(a.calls / a.total) / (b.calls / b.total)] for a, b in zip(ours, theirs, strict=True)]


def _narrow(ratios: Sequence[Sequence[float]] | None) -> bool:
    """Whether the interval of the ratio is narrow enough; also if there is no ratio."""
    if ratios is None:
        return True
    interval = interval_of_median(ratios)
    return interval is not None and interval[1] - interval[0] <= MAX_WIDTH * interval[0]
