"""Other measurements for a plan: the same combinations and networks, other conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.errors import DataError, UsageError
from orchestrator.planning.environment import resolved
from orchestrator.planning.manifest import Manifests
from orchestrator.planning.measure_stage import measure_stage
from orchestrator.planning.plan import Combination, MeasureStage, Plan, Stage
from specs.measurement import MeasurementSpec
from specs.resources import ResourcesSpec


def measurement_of(plan: Plan, combination: Combination) -> MeasureStage:
    """The stage that measures a combination."""
    stage = plan.stages[combination.measured_by]
    assert isinstance(stage, MeasureStage), "the last stage of a combination measures"
    return stage


def measured_anew(
    stage: MeasureStage, measurement: MeasurementSpec, resources: ResourcesSpec, manifests: Manifests
) -> MeasureStage:
    """The measurement of the same network under other conditions, with the packages that are installed now.

    Args:
        manifests: what the images are now.

    Raises:
        DataError: if the images are not there, or no longer those that the network was trained on.
        UsageError: if other operating points are asked for; those are checked against the network by its spec's plan.
    """
    if measurement.operating_points not in ({}, stage.measurement.operating_points):
        raise UsageError(
            "`operating_points` belong to the spec, whose plan checks them against each network. Write them there, and "
            "`slimvit run` it: finished training is not repeated. `--conditions operating_points={}` takes none."
        )
    data_part = stage.digest_parts["data"]
    assert isinstance(data_part, dict), "the part of a digest that says what the images are"
    if manifests.of(stage.data).digest != data_part["manifest"]:
        raise DataError(
            f"the images of `{stage.label}` have changed since they were planned (files were added, removed or "
            "replaced), so a new measurement could not stand beside the old. Restore them, or run the spec again."
        )
    return measure_stage(
        stage.parents[0],
        resolved(measurement, resources),
        stage.data,
        data_part,
        operating_points={} if measurement.operating_points == {} else stage.operating_points,
        num_classes=stage.num_classes,
        label=stage.label,
    )


def with_measurements(
    plan: Plan, combinations: Iterable[Combination], measured_by: Callable[[Combination], MeasureStage]
) -> Plan:
    """The plan of these combinations alone, each measured by the stage that `measured_by` says."""
    stages: dict[str, Stage] = {}
    kept = []
    for combination in combinations:
        measurement = measured_by(combination)
        trained = combination.stages[:-1]
        stages |= {digest: plan.stages[digest] for digest in trained if digest not in stages}
        stages[measurement.digest] = measurement
        kept.append(combination.model_copy(update={"stages": (*trained, measurement.digest)}))
    return plan.model_copy(update={"stages": stages, "combinations": tuple(kept)})
