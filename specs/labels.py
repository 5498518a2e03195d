"""Labels: how one value of a matrix axis is called in the names of combinations, in `exclude` and in `include`."""

from __future__ import annotations

import json
from typing import Any

from specs.matrix import Axis


def label(value: Any) -> str:
    """Label of a value: text as it is, everything else as compact JSON (`0.001`, `true`, `[1,2]`)."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def labels(axis: Axis) -> list[str]:
    """Labels of an axis, in order: the names of `strategies` and `set`, the labels of `values` and `seeds`."""
    named = axis.strategies if axis.strategies is not None else axis.set
    return list(named) if named is not None else [label(value) for value in axis.values or axis.seeds or []]
