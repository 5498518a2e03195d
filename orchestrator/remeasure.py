"""`slimvit measure EXPERIMENT`: measure networks that are trained, under the same conditions or others, and train none.

Other conditions make another measurement stage; the earlier one stays in the store. What was measured becomes the
newest plan of the experiment, in which every combination stands with its newest measurement (docs/adr/0010).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.arguments import measured_under
from orchestrator.errors import UsageError
from orchestrator.planning.manifest import Manifests
from orchestrator.planning.plan import Combination, MeasureStage
from orchestrator.planning.remeasure import measured_anew, measurement_of, with_measurements
from orchestrator.reporting.command import compare_experiment
from orchestrator.reporting.find import Found, combinations_named, find_plan, latest_plan
from orchestrator.reporting.table import WIDE
from orchestrator.run import commit_plan, raise_if_unfinished, watched
from specs.measurement import MeasurementSpec
from specs.problems import listed
from specs.resources import ResourcesSpec

Run = tuple[str, int]
"""Name and seed of a combination."""


def measure_experiment(
    experiment: str,
    conditions: Mapping[str, Any],
    *,
    combinations: Sequence[str] = (),
    store: str | Path | None = None,
    assignments: Sequence[str] = (),
    address: str | None = None,
    plain: bool = False,
) -> None:
    """Measure the finished networks of an experiment and show the comparison.

    Args:
        experiment: a spec file, or the name of an experiment in the store.
        conditions: fields of `MeasurementSpec` with their new values; the others stay as in the spec, or, for a name,
            as each combination was measured last. Empty = measure what is not measured yet.
        combinations: names of the combinations to measure; none = all.
        store: artefact store; `None` = the spec's.
        assignments: `PATH=VALUE` each, for a spec file.
        address: of a running Ray cluster; `None` starts one on this machine.
        plain: plain lines instead of the live view.

    Raises:
        UsageError: if there is no such experiment or combination, or nothing of it is trained.
        SpecProblems: if there is no such condition or value.
        DataError: if the images are not those that the networks were trained on.
        StoreError: if the store cannot be written or an artefact is damaged.
        ResourceError: if the device is not there.
        StageFailed, Interrupted: as in a run; what was measured before counts.
    """
    measured_under(conditions, MeasurementSpec())  # a slip of the pen is said before anything is looked for
    found = find_plan(experiment, store, assignments)
    plan = found.plan
    selected = [c for name in combinations for c in combinations_named(plan, name)] or list(plan.combinations)
    trained = [c for c in selected if found.store.committed(f"stages/{c.result}")]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE, emoji=False)
    _say_untrained(found, [c for c in selected if c not in trained], trained, console)

    manifests = Manifests()
    wanted = {_run(c): _wanted(found, c, conditions, manifests) for c in trained}
    part = with_measurements(plan, trained, lambda c: wanted[_run(c)])
    lent = found.experiment.model_copy(update={"resources": _resources(found.experiment.resources, wanted.values())})
    summary = watched(part, lent, found.store, address, plain, console)

    newest = _newest(found) | {run: s for run, s in wanted.items() if found.store.committed(f"stages/{s.digest}")}
    commit_plan(with_measurements(plan, plan.combinations, lambda c: newest[_run(c)]), found.experiment, found.store)
    if not summary.interrupted:
        console.print(compare_experiment(plan.experiment, (), "table", None, found.store.location), soft_wrap=True)
    raise_if_unfinished(part, summary)


def _run(combination: Combination) -> Run:
    return combination.name, combination.seed


def _wanted(
    found: Found, combination: Combination, conditions: Mapping[str, Any], manifests: Manifests
) -> MeasureStage:
    """The measurement that this combination is to get."""
    planned = measurement_of(found.plan, combination)
    if not conditions and found.store.committed(f"stages/{planned.digest}"):
        return planned
    measurement = measured_under(conditions, planned.measurement)
    return measured_anew(planned, measurement, found.experiment.resources, manifests)


def _newest(found: Found) -> dict[Run, MeasureStage]:
    """Each combination's newest measurement: of the newest plan in the store if it is of the same network, else the
    planned one."""
    newest = {_run(c): measurement_of(found.plan, c) for c in found.plan.combinations}
    networks = {_run(c): c.result for c in found.plan.combinations}
    kept = latest_plan(found.plan.experiment, found.store) or found.plan
    for c in kept.combinations:
        if networks.get(_run(c)) == c.result and found.store.committed(f"stages/{c.measured_by}"):
            newest[_run(c)] = measurement_of(kept, c)
    return newest


def _resources(resources: ResourcesSpec, stages: Iterable[MeasureStage]) -> ResourcesSpec:
    """One worker with what the measurements need, however many trained the networks."""
    conditions = [stage.measurement for stage in stages]
    return resources.model_copy(
        update={
            "workers": 1,
            "lanes": None,
            "cpus_per_worker": max(c.threads or resources.cpus_per_worker for c in conditions),
            "gpus_per_worker": 1.0 if any(c.device == "cuda" for c in conditions) else 0.0,
        }
    )


def _say_untrained(
    found: Found, untrained: Sequence[Combination], trained: Sequence[Combination], console: Console
) -> None:
    """Name what is left out.

    Raises:
        UsageError: if nothing is left.
    """
    if not trained:
        raise UsageError(
            f"nothing of `{found.plan.experiment}` that you want measured is trained in the store "
            f"{found.store.location}. Run the spec first (`slimvit run`), or name another store with `--store`."
        )
    if untrained:
        several = len({c.seed for c in found.plan.combinations}) > 1
        names = listed(f"{c.name}, seed {c.seed}" if several else c.name for c in untrained)
        console.print(f"Left out, because they are not trained yet: {names}. `slimvit run` trains them.", markup=False)
