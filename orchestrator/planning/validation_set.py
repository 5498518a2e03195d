"""Which images validate, in a text that is the same only for the same images."""

from __future__ import annotations

from orchestrator.planning.plan import MeasureStage, TrainStage


def validation_set(stage: TrainStage | MeasureStage) -> str:
    """Beginning of the data's digest, split and limit, as `1fd29b78fe39/val, at most 2,000`.

    Accuracies and costs over the images of different validation sets are different metrics; what of the images trains
    makes no difference to them.
    """
    data = stage.digest_parts["data"]
    assert isinstance(data, dict), "the part of a digest that says what the images are"
    split, limit = data.get("val"), data.get("limit_val")
    return (
        str(data["manifest"])[:12]
        + (f"/{split}" if split is not None else "")
        + (f", at most {limit:,}" if isinstance(limit, int) else "")
    )
