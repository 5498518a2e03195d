"""Operating points as curves: one trained network over the settings of a knob, averaged over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.planning.plan import Combination
from orchestrator.reporting.cells import Letters, make_cell
from orchestrator.reporting.comparison import Curve, CurvePoint
from orchestrator.reporting.conditions import Groups
from orchestrator.reporting.results import batch_size
from specs.metrics import MetricRow, OperatingPoint

_BySetting = dict[float, dict[str, dict[int, MetricRow]]]


def curves(
    combinations: Iterable[Combination],
    points: Mapping[str, Sequence[OperatingPoint]],
    letters: Mapping[str, Letters],
    groups: Groups,
) -> Iterable[Curve]:
    """The curve of each combination and knob that was measured at more than one setting.

    Args:
        combinations: of the plan.
        points: measure stage → its operating points.
        letters: column key → letters of its groups of conditions.
        groups: of the experiment's conditions.
    """
    found: dict[tuple[str, str], _BySetting] = defaultdict(dict)
    trained: dict[tuple[str, str], set[float]] = defaultdict(set)
    for combination in combinations:
        for point in points.get(combination.measured_by, ()):
            curve = (combination.name, point.knob)
            keyed = found[curve].setdefault(point.setting, {})
            for r in point.rows:
                key = r.name if r.name in letters else f"{r.name}_b{batch_size(r)}"
                keyed.setdefault(key, {})[combination.seed] = r
            if point.trained:
                trained[curve].add(point.setting)
    for (name, knob), settings in found.items():
        if len(settings) > 1:
            yield Curve(
                combination=name,
                knob=knob,
                points=tuple(
                    CurvePoint(
                        setting=setting,
                        trained=setting in trained[name, knob],
                        cells={key: make_cell(rows, letters.get(key, {}), "", groups) for key, rows in keyed.items()},
                    )
                    for setting, keyed in sorted(settings.items())
                ),
            )
