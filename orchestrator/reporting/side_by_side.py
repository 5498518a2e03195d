"""Several experiments in one comparison: their combinations as rows of one plan, if they speak of the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.planning.plan import Combination, Dropped, MeasureStage, Plan
from orchestrator.reporting.find import Found

_OF_THE_NETWORK = frozenset({"image_size", "mean", "std", "interpolation", "crop_pct", "root", "download"})
"""Parts of the data that belong to the network's input, or only say where the files are."""


def side_by_side(found: Sequence[Found]) -> Plan:
    """One plan of all experiments' combinations; their names begin with the experiment's.

    Raises:
        UsageError: if an experiment is named twice, they lie in different stores, or their classes or images differ.
    """
    names = [f.plan.experiment for f in found]
    if len(set(names)) < len(names):
        raise UsageError(f"an experiment is named twice: {', '.join(f'`{name}`' for name in names)}. Name each once.")
    roots = {f.store.location for f in found}
    if len(roots) > 1:
        raise UsageError(
            f"the experiments lie in different stores ({', '.join(sorted(roots))}), and one comparison reads one. Copy "
            "the folders `stages` and `plans` of one into the other and name it with `--store`."
        )
    _refuse_other_images(found)
    axis = "experiment"
    while any(axis in c.labels for f in found for c in f.plan.combinations):
        axis += "_"
    stages = {digest: stage for f in found for digest, stage in f.plan.stages.items()}
    return Plan.model_construct(
        experiment=" + ".join(names),
        stages=stages,
        combinations=tuple(c for f in found for c in _prefixed(f.plan, axis)),
        dropped=tuple(
            Dropped(name=f"{axis}={f.plan.experiment},{d.name}", reasons=d.reasons)
            for f in found
            for d in f.plan.dropped
        ),
        stopped={
            f"{axis}={f.plan.experiment},{name}": evidence for f in found for name, evidence in f.plan.stopped.items()
        },
    )


def _prefixed(plan: Plan, axis: str) -> Iterable[Combination]:
    for c in plan.combinations:
        labels = {axis: plan.experiment, **c.labels}
        name = ",".join(f"{key}={label}" for key, label in labels.items())
        yield Combination.model_construct(name=name, labels=labels, seed=c.seed, stages=c.stages)


def _refuse_other_images(found: Sequence[Found]) -> None:
    """Accuracy on other classes or other images is another metric."""
    seen: dict[str, tuple[int, dict[str, Any]]] = {}
    for f in found:
        for stage in f.plan.walk():
            if isinstance(stage, MeasureStage):
                images = {k: v for k, v in _images(stage).items() if k not in _OF_THE_NETWORK}
                seen.setdefault(f.plan.experiment, (stage.num_classes, images))
    (first, (classes, images)), *others = seen.items()
    for name, (other_classes, other_images) in others:
        if classes != other_classes:
            differing = f"`{first}` tells {classes} classes apart and `{name}` {other_classes}"
        elif images != other_images:
            keys = sorted(k for k in images.keys() | other_images.keys() if images.get(k) != other_images.get(k))
            differing = f"the images of `{first}` and `{name}` differ in {', '.join(keys)}"
        else:
            continue
        raise UsageError(
            f"these experiments cannot stand in one comparison: {differing}, so that their accuracies are of different "
            "things. Compare each by itself."
        )


def _images(stage: MeasureStage) -> dict[str, Any]:
    part = stage.digest_parts.get("data")
    return dict(part) if isinstance(part, dict) else stage.data.model_dump(mode="json")
