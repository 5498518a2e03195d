"""Which conditions of measurement a metric depends on, and which values may therefore be ranked together.

Two values of one metric are comparable when every condition that the metric depends on is equal. What a metric
depends on is stated here by exclusion: a condition nobody has thought of keeps values apart rather than mixing them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from specs.metrics import MetricRow

Conditions = dict[str, JsonValue]

_COUNTED = frozenset(
    {
        "params",
        "active_params",
        "macs",
        "activations",
        "checkpoint_mib",
        "params_ratio",
        "macs_ratio",
        "checkpoint_ratio",
    }
)
"""Metrics that are counted, not timed: the machine cannot change them."""

_COUNTING = frozenset({"counting", "images", "baseline"})
"""What does change a count: the rule of counting, the images averaged over, the reference."""

_OF_THE_NETWORK = frozenset({"batch_size", "input_size", "repeat"})
"""Noted with the conditions, but no reason to keep values apart: the batch size names a column of its own, the input's
size belongs to the network that is compared, and a repetition was taken like the first time."""

_WHILE_TRAINING = frozenset(
    {"top1", "top5", "ece", "worst_class_top1", "train_images_per_s", "train_memory_mib", "train_device_hours"}
    | {"train_seconds", "teacher_share"}
)
"""Metrics that training itself took: its precision and compilation belong to the combination, not to the bench."""


class Groups:
    """Which rows were taken alike, each set of conditions looked at once: an experiment has few, but many rows."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, Conditions]] = {}
        self._latest: dict[str, tuple[Conditions, tuple[str, Conditions]]] = {}

    def of(self, row: MetricRow) -> tuple[str, Conditions]:
        """Digest and content of what this row's metric depends on."""
        latest = self._latest.get(row.name)
        if latest is not None and latest[0] == row.conditions:  # the usual case, ten times as fast as the key below
            return latest[1]
        key = (row.name, repr(row.conditions))
        found = self._known.get(key)
        if found is None:
            needed = relevant(row.name, row.conditions)
            found = self._known[key] = (digest(needed), needed)
        self._latest[row.name] = (row.conditions, found)
        return found


def relevant(metric: str, conditions: Mapping[str, JsonValue]) -> Conditions:
    """The conditions that values of this metric must share to be comparable, nested ones with dotted keys."""
    return {key: value for key, value in _flat(conditions).items() if not _ignored(metric, key)}


def digest(conditions: Mapping[str, JsonValue]) -> str:
    """Short name of a set of conditions: the first 12 hex digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(conditions, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def most_common(digests: Iterable[str]) -> str:
    """The digest that occurs most often; of equally frequent ones, the first."""
    found = list(digests)
    return max(dict.fromkeys(found), key=found.count)


def differences(groups: Mapping[str, Conditions]) -> dict[str, dict[str, JsonValue]]:
    """Condition → group → value, for the conditions on which the groups disagree; absent ones are `None`."""
    keys = sorted({key for conditions in groups.values() for key in conditions})
    table = {key: {name: conditions.get(key) for name, conditions in groups.items()} for key in keys}
    return {key: values for key, values in table.items() if len({json.dumps(v) for v in values.values()}) > 1}


def taken_while_training(metric: str) -> bool:
    """Whether training took it, so that measuring again leaves it as it is."""
    return metric in _WHILE_TRAINING


def _ignored(metric: str, key: str) -> bool:
    head = key.split(".")[0]
    if head in _OF_THE_NETWORK or (metric in _WHILE_TRAINING and head in ("precision", "compile")):
        return True
    return metric in _COUNTED and head not in _COUNTING


def _flat(conditions: Mapping[str, JsonValue], prefix: str = "") -> Conditions:
    flat: Conditions = {}
    for key, value in conditions.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
