"""The measurement of one trained network: a stage named by the network, the conditions and the images."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from orchestrator.planning.digest import FORMAT, MEASUREMENT_VERSION, digest_of
from orchestrator.planning.environment import numerics
from orchestrator.planning.plan import MeasureStage
from specs.data import DataSpec
from specs.measurement import MeasurementSpec


def measure_stage(
    network: str,
    measurement: MeasurementSpec,
    data: DataSpec,
    data_part: Mapping[str, JsonValue],
    *,
    operating_points: Mapping[str, list[float]],
    num_classes: int,
    label: str,
) -> MeasureStage:
    """A measurement under the packages that are installed now.

    Args:
        network: digest of the training stage that leaves the network.
        measurement: conditions, `auto` and `null` filled in (`environment.resolved`).
        data: images; `root` absolute.
        data_part: what a digest says of the images.
        operating_points: settings of the network's knobs (`operating.OperatingPoints`).
        num_classes: classes of the images.
        label: for people.
    """
    parts: dict[str, JsonValue] = {
        "format": FORMAT,
        "kind": "measure",
        "network": network,
        "measurement": measurement.model_dump(mode="json", exclude={"operating_points"}),
        "operating_points": {knob: list(settings) for knob, settings in operating_points.items()},
        "data": dict(data_part),
        "input_size": data.image_size,
        "code": MEASUREMENT_VERSION,
        "environment": dict(numerics(measurement.device)),
    }
    return MeasureStage.model_construct(
        kind="measure",
        digest=digest_of(parts),
        label=label,
        digest_parts=parts,
        parents=(network,),
        measurement=measurement,
        data=data,
        num_classes=num_classes,
        input_size=data.image_size,
        operating_points=dict(operating_points),
    )
