"""A plan for people and for machines: what runs, what is shared, what is done, what was left out."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping

from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from cluster.storage import ArtifactStore
from orchestrator.planning.explain import explain
from orchestrator.planning.feasible import cannot_start
from orchestrator.planning.plan import MeasureStage, NetworkSource, Plan, SearchPlan, StoreStage
from orchestrator.planning.status import Status, statuses
from orchestrator.planning.stored import bytes_to_write, no_room, shown_bytes, stores
from orchestrator.storage import open_store
from specs.experiment import Experiment
from specs.words import counted

__all__ = ["as_json", "as_text", "explain"]

SHORT = 10
"""Hex digits of a digest that people see; enough to name a stage to `slimvit explain`."""
MAX_WIDTH = 2_000
"""Columns; the terminal wraps long lines, nothing is cut off."""
SHOWN_CHILDREN = 40
"""Stages beneath one stage that the tree shows; `--json` has all."""
MARKS: dict[Status, tuple[str, str]] = {
    "done": ("✓", "green"),
    "to run": ("○", "yellow"),
    "not needed": ("·", "dim"),
}


def as_text(plan: Plan, experiment: Experiment) -> str:
    """The tree of stages with their status, what sharing saves, and what was dropped; in colour on a terminal."""
    console = Console(width=MAX_WIDTH, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(_rendered(plan, experiment))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def as_json(plan: Plan, experiment: Experiment) -> str:
    """Everything: the plan, the status of every stage, and the counts."""
    store = _store(experiment)
    found = statuses(plan, store)
    return json.dumps(
        {
            **plan.model_dump(mode="json"),
            "status": found,
            "summary": _counts(plan, found),
            "stored_bytes": _stored_bytes(plan, found, store),
        },
        indent=2,
        ensure_ascii=False,
    )


def _store(experiment: Experiment) -> ArtifactStore:
    return open_store(experiment.storage)


def _counts(plan: Plan, found: Mapping[str, Status]) -> dict[str, int]:
    alone, states = plan.stages_alone(), Counter(found.values())
    return {
        "combinations": len(plan.combinations),
        "dropped": len(plan.dropped),
        "stages": len(plan.stages),
        "stages_alone": alone,
        "saved": alone - len(plan.stages),
        "done": states["done"],
        "to_run": states["to run"],
        "not_needed": states["not needed"],
    }


def _stored_bytes(plan: Plan, found: Mapping[str, Status], store: ArtifactStore) -> dict[str, int | None]:
    """Size of all stored teachers, how much of it is to be written, and what the disk has free (`None`: no limit)."""
    missing = stores(plan, _to_run(found))
    return {
        "all": sum(stage.num_bytes for stage in stores(plan, plan.stages)),
        "to_write": sum(bytes_to_write(stage, store) for stage in missing),
        "free": store.free_bytes(),
    }


def _to_run(found: Mapping[str, Status]) -> set[str]:
    return {digest for digest, status in found.items() if status == "to run"}


def _rendered(plan: Plan, experiment: Experiment) -> Group:
    store = _store(experiment)
    found = statuses(plan, store)
    parts: list[Text | Tree] = [_tree(plan, found), Text(_summary(_counts(plan, found)))]
    if plan.search is not None:
        parts.append(Text(_search(plan, plan.search, experiment)))
    if stores(plan, plan.stages):
        sizes = _stored_bytes(plan, found, store).items()
        size = {name: "any room" if value is None else shown_bytes(value) for name, value in sizes}
        parts.append(
            Text(
                f"Stored teachers: {size['all']}; {size['to_write']} to write, {size['free']} free in {store.location}."
            )
        )
    missing = _to_run(found)
    obstacles = dict.fromkeys(cannot_start(plan, missing, experiment.resources).values())
    if obstacles:
        parts.append(Text("\nNot to be run with these `resources`:\n" + "\n".join(f"  - {o}" for o in obstacles)))
    for reason in no_room(plan, missing, store):
        parts.append(Text(f"\nNot to be run, because the disk is too small:\n  - {reason}"))
    if plan.dropped:
        parts.append(Text(f"\nDropped, because their parts conflict ({len(plan.dropped)}):"))
        parts += [
            Text(f"  {dropped.name}\n" + "\n".join(f"    - {r}" for r in dropped.reasons)) for dropped in plan.dropped
        ]
    return Group(*parts)


def _search(plan: Plan, search: SearchPlan, experiment: Experiment) -> str:
    """The space, how far the search is, and what it stopped on what evidence."""
    assert experiment.search is not None, "a plan with a search comes from a spec with one"
    goals = ", ".join(objective.metric for objective in experiment.search.objectives)
    asks = f" for {goals}" if search.algorithm == "optuna" or experiment.search.stop_dominated else ""
    so_far = f"{search.proposed} proposed so far, {search.judged} judged"
    more = "; the others are proposed while it runs" if search.proposed < search.num_trials else ""
    lines = [f"\nSearch: {search.algorithm}{asks}, {search.num_trials} trials, {so_far}{more}."]
    width = max(len(name) for name in search.space)
    lines += [f"  {name:{width}}  {values}" for name, values in search.space.items()]
    if plan.stopped:
        lines.append(f"Stopped early ({len(plan.stopped)}):")
        lines += [f"  {name}: {evidence}" for name, evidence in plan.stopped.items()]
    return "\n".join(lines)


def _summary(counts: Mapping[str, int]) -> str:
    sharing = (
        f"{counted(counts['stages'], 'stage')} instead of {counts['stages_alone']}: sharing saves {counts['saved']}."
    )
    work = f"{counts['done']} done, {counts['to_run']} to run"
    if counts["not_needed"]:
        work += f", {counts['not_needed']} missing but not needed any more"
    return f"\n{counted(counts['combinations'], 'combination')}; {sharing}\n{work}."


def _tree(plan: Plan, found: Mapping[str, Status]) -> Tree:
    """Each stage once, beneath the first stage it reads; other stages it reads are named beside it."""
    children: dict[str | None, list[str]] = defaultdict(list)
    for digest, stage in plan.stages.items():
        children[stage.parents[0] if stage.parents else None].append(digest)
    root = Tree(Text(plan.experiment), guide_style="dim")
    # Chains of stages are short, but recursion would bind the depth of a plan to Python's stack.
    open_branches: list[tuple[Tree, str | None]] = [(root, None)]
    while open_branches:
        branch, parent = open_branches.pop(0)
        for digest in children[parent][:SHOWN_CHILDREN]:
            open_branches.append((branch.add(_line(plan, digest, found[digest])), digest))
        hidden = len(children[parent]) - SHOWN_CHILDREN
        if hidden > 0:
            branch.add(Text(f"… and {hidden} more (`--json` lists all)", style="dim"))
    return root


def _line(plan: Plan, digest: str, status: Status) -> Text:
    stage = plan.stages[digest]
    mark, style = MARKS[status]
    line = Text(f"{mark} ", style=style)
    line.append("measure" if isinstance(stage, MeasureStage) else stage.label, style="bold")
    line.append(f"  {digest[:SHORT]}  {status}", style=style)
    if isinstance(stage, MeasureStage):
        return line
    line.append(f"  {counted(stage.epochs, 'epoch')}")
    if isinstance(stage, StoreStage):
        line.append(f"  the {stage.top_k} likeliest of {stage.num_classes} classes for {stage.num_answers:,} images")
        line.append(f"  {shown_bytes(stage.num_bytes)}", style="bold")
        return line
    if stage.strategies:
        line.append(f"  {' + '.join(s.name for s in stage.strategies)}")
    if stage.teachers:
        line.append(f"  taught by {' and '.join(_named(plan, teacher) for teacher in stage.teachers)}")
    return line


def _named(plan: Plan, teacher: NetworkSource) -> str:
    """A teacher, for people."""
    name = teacher.model.model if teacher.model is not None else str(teacher.checkpoint)
    digest = teacher.stage or teacher.store
    if digest is not None:
        name = plan.stages[digest].label
    return name if teacher.image_size is None else f"{name} at {teacher.image_size} px"
