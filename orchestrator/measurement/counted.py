"""Rows of what is counted and needs no clock: parameters, MACs, bytes on disk, and strategies' own reports."""

from __future__ import annotations

import torch
from pydantic import JsonValue

from orchestrator.measurement import compute
from orchestrator.measurement.rows import STUDENT
from orchestrator.measurement.subject import Bench, Subject

COUNTED = ("params", "macs", "checkpoint_mib", "params_ratio", "macs_ratio", "checkpoint_ratio")
"""Metrics that are taken here."""
REPORT_BATCH = 64
"""Images a pass while strategies report of themselves."""


def count(bench: Bench) -> None:
    """Take what is counted, of the student and over the baseline's."""
    rows, conditions = bench.rows, _conditions(bench)
    params = {who: float(s.params) for who, s in bench.subjects.items()}
    rows.add("params", params[STUDENT], conditions)
    rows.add_ratio("params_ratio", params, conditions)
    if rows.wanted & {"macs", "macs_ratio"}:
        macs = {who: _macs(bench, s) for who, s in bench.subjects.items()}
        values = {who: sum(m) / len(m) for who, m in macs.items()}
        rows.add("macs", values[STUDENT], conditions, macs[STUDENT] if bench.varied else [])
        rows.add_ratio("macs_ratio", values, conditions)
    size = {who: s.checkpoint / compute.MIB for who, s in bench.subjects.items()}
    rows.add("checkpoint_mib", size[STUDENT], conditions)
    rows.add_ratio("checkpoint_ratio", size, conditions)


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


def _macs(bench: Bench, subject: Subject) -> list[float]:
    if subject.macs is not None:
        return [subject.macs]
    network = subject.network.to(bench.settings.device)
    return compute.macs_of_images(network, bench.images.to(bench.settings.device))


def _conditions(bench: Bench) -> dict[str, JsonValue]:
    return {"counting": compute.RULE, "images": bench.images_are, "input_size": bench.images.shape[-1]}
