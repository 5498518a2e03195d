"""Metric rows while they are taken: values with their samples and conditions, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from orchestrator.measurement.bootstrap import interval_of_median
from orchestrator.measurement.samples import summary, thinned
from specs.metrics import MetricRow, row
from specs.model import ModelSpec

STUDENT, BASELINE = "student", "baseline"
Conditions = Mapping[str, JsonValue]


class Rows:
    """Rows of one network and its ratios to a baseline.

    Attributes:
        taken: the rows, in the order in which they were taken; only wanted metrics.
    """

    def __init__(self, wanted: frozenset[str], baseline: ModelSpec | None, no_baseline: str) -> None:
        self.wanted, self.no_baseline = wanted, no_baseline
        self.baseline: JsonValue = None if baseline is None else {"model": baseline.model, "args": dict(baseline.args)}
        self.taken: list[MetricRow] = []

    def add(
        self,
        name: str,
        value: float | None,
        conditions: Conditions,
        samples: Sequence[float] = (),
        *,
        reason: str | None = None,
        parts: Mapping[str, float] | None = None,
        interval: tuple[float, float] | None = None,
        unreliable: str | None = None,
    ) -> None:
        """A value in the metric's unit, or the reason why it is missing.

        Args:
            parts: more numbers for the summary: what the value is the sum of, or what was seen while it was taken.
            interval: 95 % confidence interval of the value.
            unreliable: why the value should not be trusted; a value that is missing needs no such reason.
        """
        if name in self.wanted:
            self.taken.append(
                row(
                    name,
                    value,
                    samples=thinned(samples),
                    summary={**summary(samples), **(parts or {})},
                    interval=interval,
                    conditions=dict(conditions),
                    reason=reason,
                    unreliable=None if value is None else unreliable,
                )
            )

    def add_reported(self, name: str, value: float, conditions: Conditions) -> None:
        """What a strategy reports of itself; it has no unit, and no direction is better."""
        self.taken.append(MetricRow(name=name, value=value, unit="", direction="none", conditions=dict(conditions)))

    def add_ratio(
        self,
        name: str,
        values: Mapping[str, float],
        conditions: Conditions,
        why: Mapping[str, str] | None = None,
        samples: Sequence[float] = (),
        *,
        parts: Mapping[str, float] | None = None,
        interval: tuple[float, float] | None = None,
        unreliable: str | None = None,
    ) -> None:
        """The student's value over the baseline's; `why` says what kept a value from being taken."""
        if self.baseline is None:
            self.add(name, None, conditions, reason=self.no_baseline)
        elif STUDENT in values and values.get(BASELINE):
            ratio = values[STUDENT] / values[BASELINE]
            over = {**conditions, "baseline": self.baseline}
            self.add(name, ratio, over, samples, parts=parts, interval=interval, unreliable=unreliable)
        else:
            reasons = [f"the {who}: {(why or {})[who]}" for who in (STUDENT, BASELINE) if who in (why or {})]
            self.add(name, None, conditions, reason="; ".join(reasons) or "the baseline's value is 0")

    def add_paired_ratio(
        self,
        name: str,
        blocks: Sequence[Sequence[float]] | None,
        conditions: Conditions,
        why: Mapping[str, str],
        *,
        parts: Mapping[str, float] | None = None,
        unreliable: str | None = None,
    ) -> None:
        """The median of ratios of neighbours in time, which the drift of the machine hardly reaches, and its interval.

        Args:
            blocks: ratios, block by block; `None` = there are none, and `why` says why.
        """
        if blocks is None:
            self.add_ratio(name, {}, conditions, why)
            return
        ratios = [ratio for block in blocks for ratio in block]
        self.add_ratio(
            name,
            {STUDENT: summary(ratios)["p50"], BASELINE: 1.0},
            conditions,
            why,
            ratios,
            parts=parts,
            interval=interval_of_median(blocks),
            unreliable=unreliable,
        )
