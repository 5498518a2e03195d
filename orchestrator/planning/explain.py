"""Why a stage is to run: what differs between it and the nearest finished stage in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cluster.storage import ArtifactStore
from orchestrator.errors import PlanError, StoreError
from orchestrator.planning.plan import Plan, Stage
from orchestrator.storage import open_store
from specs.experiment import Experiment
from specs.problems import listed, nearest

SHORT = 10
MIN_PREFIX = 4
"""Fewest hex digits that name a stage."""
KINDS = {"train": "training stage", "store": "stored teacher", "measure": "measurement"}
"""Kinds of stages in words."""
_ABSENT = object()


class Difference(NamedTuple):
    """One place where two digests' parts differ."""

    path: str
    """Dotted path."""
    old: Any
    """Value in the finished stage; a sentinel where it has none."""
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} → {_shown(self.new)}"


def explain(plan: Plan, experiment: Experiment, stage: str) -> str:
    """Say which parts of a stage's digest differ from those of the nearest finished stage.

    Args:
        plan: the plan.
        experiment: its experiment; says where the store is.
        stage: label, stage name, or the first digits of a digest.

    Raises:
        PlanError: if no stage, or more than one, is meant.
        StoreError: if a finished stage is damaged.
    """
    wanted = find_stage(plan, stage)
    store = open_store(experiment.storage)
    title = f"{wanted.label} ({wanted.digest[:SHORT]})"
    if store.committed(f"stages/{wanted.digest}"):
        return f"{title} is finished; it will not run again."
    best = min(_finished(store, wanted), default=None, key=lambda item: (len(item[1]), not item[2], item[0]))
    if best is None:
        return f"{title} is to run: no {KINDS[wanted.kind]} is finished yet in {experiment.storage.root}."
    label, differences, _ = best
    lines = [f"{title} is to run. Nearest finished stage: {label}. What differs:"]
    lines += [f"  {difference}" for difference in differences]
    names = {stage.digest: stage.label for stage in plan.stages.values()}
    for difference in differences:
        parent = difference.new if isinstance(difference.new, str) else None
        if parent in names and not store.committed(f"stages/{parent}"):
            lines.append(f"It reads `{names[parent]}`, which is to run too: slimvit explain … {parent[:SHORT]}")
    return "\n".join(lines)


def find_stage(plan: Plan, text: str) -> Stage:
    """The stage that a label, a stage name or the beginning of a digest means.

    Raises:
        PlanError: if none or several are meant; lists the nearest, or the several.
    """
    stages = list(plan.walk())
    exact = [s for s in stages if s.label == text]
    named = exact or [s for s in stages if s.label.partition("[")[0] == text]
    if not named and len(text) >= MIN_PREFIX:
        named = [s for s in stages if s.digest.startswith(text.lower())]
    if len(named) == 1:
        return named[0]
    if named:
        several = listed(f"{s.label} ({s.digest[:SHORT]})" for s in named)
        raise PlanError(f"`{text}` means {len(named)} stages: {several}. Give the whole label or the digest.")
    near = nearest(text, [s.label for s in stages])
    hint = f" Did you mean `{near}`?" if near else ""
    raise PlanError(f"the plan has no stage `{text}`.{hint} Its stages: {listed(s.label for s in stages)}.")


def differences(old: Any, new: Any, path: str = "") -> Iterator[Difference]:
    """Places where two JSON values differ, leaf by leaf; list entries go by position."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = (dict(enumerate(value)) for value in (old, new))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield Difference(path, old, new)
        return
    for key in dict.fromkeys((*old, *new)):
        yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}.{key}" if path else str(key))


def _finished(store: ArtifactStore, wanted: Stage) -> Iterator[tuple[str, list[Difference], bool]]:
    """Finished stages of the same kind: label, what differs, and whether it is the same stage of the spec."""
    name = wanted.label.partition("[")[0]
    for artefact in store.names("stages"):
        try:
            folder = store.fetch(artefact, files=["stage.json"])
            stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        except FileNotFoundError:  # deleted meanwhile
            continue
        except ValueError as error:
            raise StoreError(str(error)) from error
        if stage["kind"] != wanted.kind:
            continue
        # Through JSON, so that tuples and lists are the same.
        parts = json.loads(json.dumps(wanted.digest_parts))
        label = f"{stage['label']} ({stage['digest'][:SHORT]})"
        yield label, list(differences(stage["digest_parts"], parts)), stage["label"].partition("[")[0] == name


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, str):
        return value[:SHORT] + "…" if len(value) == 64 and " " not in value else value
    return json.dumps(value, ensure_ascii=False)
