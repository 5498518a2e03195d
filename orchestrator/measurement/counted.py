"""Rows of what is counted and needs no clock: parameters, MACs, activations, bytes, and strategies' own reports."""

from __future__ import annotations

import torch
from pydantic import JsonValue

from orchestrator.measurement import compute
from orchestrator.measurement.compute import Count
from orchestrator.measurement.precision import DTYPES
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.subject import Bench, Subject

SIZES = ("params", "weights_mib", "checkpoint_mib", "params_ratio", "checkpoint_ratio")
PASSES = ("macs", "activations", "active_params", "arithmetic_intensity", "macs_ratio")
"""Metrics of a pass over one image, all from one count."""
COUNTED = SIZES + PASSES
"""Metrics that are taken here."""
REPORT_BATCH = 64
"""Images a pass while strategies report of themselves."""


def count(bench: Bench) -> None:
    """Take what is counted, of the student and over the baseline's."""
    rows, conditions = bench.rows, _conditions(bench)
    dtype = DTYPES[bench.settings.precision]
    params = {who: float(s.params) for who, s in bench.subjects.items()}
    size = {who: s.checkpoint / compute.MIB for who, s in bench.subjects.items()}
    weights = compute.weight_bytes(bench.subjects[STUDENT].network, dtype) / compute.MIB
    rows.add("params", params[STUDENT], conditions)
    rows.add("weights_mib", weights, {**conditions, "precision": bench.settings.precision})
    rows.add("checkpoint_mib", size[STUDENT], conditions)
    rows.add_ratio("params_ratio", params, conditions)
    rows.add_ratio("checkpoint_ratio", size, conditions)
    if rows.wanted.intersection(PASSES):
        _count_passes(bench, dtype.itemsize)


def ask_strategies(bench: Bench) -> None:
    """What the student's strategies report of themselves, as means over the images."""
    subject, device = bench.subjects[STUDENT], bench.settings.device
    if not subject.strategies:
        return
    sums: dict[str, float] = {}
    network = subject.network.to(device)
    for images in bench.images.split(REPORT_BATCH):
        with torch.inference_mode():
            out = network(images.to(device))
        for strategy in subject.strategies:
            for name, value in strategy.measure(out).items():
                key = f"{strategy.name}.{name}"
                sums[key] = sums.get(key, 0.0) + value * len(images)
    for name, total in sums.items():
        bench.rows.add_reported(name, total / len(bench.images), _conditions(bench))


def _count_passes(bench: Bench, bytes_per_element: int) -> None:
    """Expected costs over the images; where images differ, with their distribution."""
    rows, conditions = bench.rows, _conditions(bench)
    counts: dict[str, list[Count]] = {}
    why: dict[str, str] = {}
    for who, subject in bench.subjects.items():
        try:
            counts[who] = _counts(bench, subject)
        except compute.PASS_FAILED as error:
            why[who] = f"a pass cannot be counted: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    means = {who: Count.mean(c) for who, c in counts.items()}
    each = counts.get(STUDENT, []) if bench.varied else []
    mean, reason = means.get(STUDENT), why.get(STUDENT)
    for name in ("macs", "activations", "active_params"):
        value = None if mean is None else getattr(mean, name)
        rows.add(name, value, conditions, [getattr(c, name) for c in each], reason=reason)
    intensity = None if mean is None else mean.intensity(bytes_per_element)
    rows.add(
        "arithmetic_intensity",
        intensity,
        {**conditions, "precision": bench.settings.precision},
        [i for c in each if (i := c.intensity(bytes_per_element)) is not None],
        reason=reason or ("the network has no convolution and no matrix product" if intensity is None else None),
    )
    rows.add_ratio("macs_ratio", {who: m.macs for who, m in means.items()}, conditions, why)


def _counts(bench: Bench, subject: Subject) -> list[Count]:
    """Of every image, or one for all if they cost the same."""
    if subject.count is not None:
        return [subject.count]
    network = subject.network.to(bench.settings.device)
    return compute.counts_of_images(network, bench.images.to(bench.settings.device))


def _conditions(bench: Bench) -> dict[str, JsonValue]:
    return {"counting": compute.RULE, "images": bench.images_are, "input_size": bench.images.shape[-1]}
