"""Rows of what the clock says: throughput at each batch size, latency at batch 1, and their ratios to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from orchestrator.measurement import timing
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.samples import summary
from orchestrator.measurement.subject import Bench
from strategies.backbone import Student

LATENCIES = ("latency_ms", "latency_p95_ms", "latency_ratio")
THROUGHPUTS = ("throughput", "throughput_ratio")
TIMED = (*THROUGHPUTS, *LATENCIES)
"""Metrics that are taken here."""


def take_times(bench: Bench, does_not_fit: Mapping[str, set[int]]) -> None:
    """Time the networks on the bench in alternation.

    Args:
        does_not_fit: network → batch sizes that memory is known not to hold.
    """
    wanted = bench.rows.wanted
    if not wanted.intersection(TIMED):
        return
    networks = {who: _compiled(bench, bench.ready(who)) for who in bench.subjects}
    if wanted.intersection(LATENCIES):
        _latency(bench, *_blocks(bench, networks, 1, does_not_fit, one_by_one=True))
    if wanted.intersection(THROUGHPUTS):
        for batch_size in dict.fromkeys(bench.settings.batch_sizes):
            blocks, why = _blocks(bench, networks, batch_size, does_not_fit, one_by_one=False)
            _throughput(bench, batch_size, blocks, why)


def _blocks(
    bench: Bench,
    networks: Mapping[str, timing.Network],
    batch_size: int,
    does_not_fit: Mapping[str, set[int]],
    *,
    one_by_one: bool,
) -> tuple[dict[str, list[timing.Block]], dict[str, str]]:
    """Blocks of the networks that could be timed, and the reasons of those that could not."""
    able, why = dict(networks), {}
    for who, network in networks.items():
        try:
            if batch_size in does_not_fit[who]:
                raise timing.DoesNotFit(batch_size)
            with torch.inference_mode(), timing.out_of_memory_as_result(batch_size):
                network(bench.batches(batch_size)[0])
        except RuntimeError as error:  # a kernel that this format lacks, a compiler that is not there, …
            why[who] = str(error).strip().splitlines()[0]
            del able[who]
    if STUDENT not in able:
        return {}, why
    batches = bench.batches(batch_size)
    return timing.time_alternately(able, batches, bench.settings.seconds, one_by_one=one_by_one), why


def _latency(bench: Bench, blocks: Mapping[str, Sequence[timing.Block]], why: Mapping[str, str]) -> None:
    rows, conditions = bench.rows, bench.conditions | {"batch_size": 1}
    ms = {who: [1000 * s for b in taken for s in b.seconds] for who, taken in blocks.items()}
    found = {who: summary(times) for who, times in ms.items()}
    if STUDENT in found:
        rows.add("latency_ms", found[STUDENT]["p50"], conditions, ms[STUDENT])
        rows.add("latency_p95_ms", found[STUDENT]["p95"], conditions, ms[STUDENT])
    else:
        rows.add("latency_ms", None, conditions, reason=why[STUDENT])
        rows.add("latency_p95_ms", None, conditions, reason=why[STUDENT])
    medians = {who: [summary(b.seconds)["p50"] for b in taken] for who, taken in blocks.items()}
    rows.add_paired_ratio("latency_ratio", medians, conditions, why)


def _throughput(
    bench: Bench, batch_size: int, blocks: Mapping[str, Sequence[timing.Block]], why: Mapping[str, str]
) -> None:
    conditions = bench.conditions | {"batch_size": batch_size}
    speed = {who: [b.calls * batch_size / b.total for b in taken] for who, taken in blocks.items()}
    if STUDENT in speed:
        bench.rows.add("throughput", summary(speed[STUDENT])["p50"], conditions, speed[STUDENT])
    else:
        bench.rows.add("throughput", None, conditions, reason=why[STUDENT])
    bench.rows.add_paired_ratio("throughput_ratio", speed, conditions, why)


def _compiled(bench: Bench, network: Student) -> timing.Network:
    if not bench.settings.compile:
        return network
    return torch.compile(network, dynamic=None if bench.varied else False)
