"""What goes to the queue, and what is refused before it is started."""

from __future__ import annotations

from orchestrator.execution.handed import sort_out, to_queue
from orchestrator.planning.plan import Combination, Plan
from tests.execution.plans import digest, measure, train

TEACHER, GOOD, BAD = train("teacher"), train("good", "teacher"), train("bad", "teacher")
STAGES = {s.digest: s for s in (TEACHER, GOOD, BAD, measure("good"), measure("bad"))}


def plan(*students: str) -> Plan:
    chains = {name: (digest("teacher"), digest(name), digest(f"measure {name}")) for name in students}
    combinations = tuple(Combination(name=name, labels={}, seed=0, stages=chain) for name, chain in chains.items())
    wanted = {d: stage for d, stage in STAGES.items() if any(d in chain for chain in chains.values())}
    return Plan(experiment="test", stages=wanted, combinations=combinations)


def test_what_can_run_is_handed_out_as_it_is() -> None:
    both = plan("good", "bad")
    assert sort_out(both, both.stages, lambda stage: None) == (frozenset(both.stages), {})


def test_nothing_is_trained_for_what_cannot_run() -> None:
    alone, both = plan("bad"), plan("good", "bad")
    wanted, refused = sort_out(alone, alone.stages, lambda stage: "too large" if stage.label == "bad" else None)
    assert refused == {digest("bad"): "too large"}
    assert wanted == {digest("bad"), digest("measure bad")}, "not its teacher; and the measurement, to be skipped"
    assert sort_out(both, both.stages, lambda stage: "too large" if stage.label == "bad" else None)[0] == {*both.stages}


def test_what_is_left_out_does_not_count_as_finished() -> None:
    alone = plan("bad")
    stages, done = to_queue(alone, {digest("bad"), digest("measure bad")}, left_out={digest("teacher")})
    assert (list(stages), done) == ([digest("bad"), digest("measure bad")], [])
    stages, done = to_queue(alone, {digest("bad"), digest("measure bad")}, left_out=())
    assert done == [digest("teacher")], "a teacher that is not to run is there"
