"""Who goes on, and who is beaten: against rungs and spreads that are computed here by hand."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from orchestrator.search.dominance import Standing, domination
from orchestrator.search.halving import Halving, evidence
from orchestrator.search.ledger import Verdict
from orchestrator.search.searcher import make_searcher
from specs.search import AshaSpec, Dimension, Objective, SearchSpec

TOP1, MACS = Objective(metric="top1"), Objective(metric="macs")


def standing(name: str, top1: list[float], macs: list[float]) -> Standing:
    return Standing(name, {"top1": top1, "macs": macs})


def test_asha_by_hand() -> None:
    """Rungs at 1, 3, 9 of 10 epochs; one of three goes on: the cutoff is the 67th percentile of those before."""
    asha = AshaSpec(grace_epochs=1, reduction_factor=3)
    halving = Halving(asha, 10)
    first = halving.judge(0, 1, 30.0)
    assert first is not None
    assert (first.goes_on, first.cutoff, first.others) == (True, None, 0), "nobody to compare the first one with"
    worse = halving.judge(1, 1, 20.0)
    assert worse is not None
    assert (worse.goes_on, worse.cutoff, worse.others) == (False, 30.0, 1)
    assert evidence(worse, asha, 10) == (
        "stopped after epoch 1 of 10: top-1 20.0 % < 30.0 %, which the best third of 1 trial had reached there"
    )
    close = worse.model_copy(update={"top1": 29.996})
    assert "top-1 29.996 % < 30.000 %" in evidence(close, asha, 10), "a comparison that reads as one"
    third = halving.judge(2, 1, 26.0)  # of 20 and 30, two thirds of the way: 26.67
    assert third is not None
    assert (third.goes_on, round(third.cutoff or 0, 2), third.others) == (False, 26.67, 2)
    assert halving.judge(0, 2, 31.0) is None, "between two rungs nobody is judged"
    again = halving.judge(0, 3, 40.0)
    assert again is not None
    assert (again.epoch, again.others, again.goes_on) == (3, 0, True)
    assert halving.judge(0, 10, 50.0) is None, "at the end there is nothing to stop"


@pytest.mark.parametrize("factor", [2.0, 3.0, 4.0])
def test_asha_against_percentiles(factor: float) -> None:
    """Any order of arrivals: the decision is the percentile rule of the paper, on what arrived at that epoch before."""
    spec, epochs, generator = AshaSpec(grace_epochs=2, reduction_factor=factor), 20, random.Random(7)
    halving, arrived = Halving(spec, epochs), {}
    milestones = []
    while (epoch := 2 * factor ** len(milestones)) <= epochs:
        milestones.append(int(epoch))
    runs = [(epoch, trial) for trial in range(25) for epoch in range(1, epochs + 1)]
    generator.shuffle(runs)
    runs.sort(key=lambda run: run[0])  # trials in any order, epochs of each in theirs
    for epoch, trial in runs:
        top1 = generator.uniform(0, 100)
        judged = halving.judge(trial, epoch, top1)
        if epoch not in milestones or epoch == epochs:
            assert judged is None
            continue
        before = arrived.setdefault(epoch, [])
        cutoff = np.percentile(before, 100 * (1 - 1 / factor)) if before else None
        assert judged is not None
        assert judged.goes_on == (cutoff is None or top1 >= cutoff)
        assert judged.cutoff == (None if cutoff is None else pytest.approx(cutoff))
        assert judged.others == len(before)
        before.append(top1)


def test_dominated_beyond_the_spread() -> None:
    good, bad = standing("good", [80.0, 81.0, 82.0], [1e9] * 3), standing("bad", [75.0], [2e9])
    found = domination(bad, [bad, good], [TOP1, MACS])
    assert found is not None
    assert found.by == "good"
    assert found.evidence == (
        "dominated after 1 seed: `good` (3 seeds) is better in top1 by 6 points, beyond 2 × the spread of 1, and "
        "better in macs by 1e+09 MACs/image"
    )
    assert statistics.stdev([80.0, 81.0, 82.0]) == 1.0


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (standing("b", [80.0], [1e9]), "one seed has no spread"),
        (standing("b", [77.0, 79.0], [1e9] * 2), "2.5 points are within twice the spread of 1.41"),
        (standing("b", [90.0, 91.0], [3e9] * 2), "it costs more"),
        (standing("a", [90.0, 91.0], [1e9] * 2), "it is the trial itself"),
    ],
)
def test_not_dominated(other: Standing, why: str) -> None:
    assert domination(standing("a", [75.5], [2e9]), [other], [TOP1, MACS]) is None, why


def test_equal_costs_do_not_protect() -> None:
    worse, better = standing("a", [70.0, 70.5], [1e9] * 2), standing("b", [80.0, 80.5], [1e9] * 2)
    found = domination(worse, [better], [TOP1, MACS])
    assert found is not None
    assert "equal in macs" in found.evidence
    assert domination(better, [worse], [TOP1, MACS]) is None


SPACE = {
    "lr": Dimension(loguniform=[1e-5, 1e-1]),
    "r": Dimension(int=[0, 4]),
    "loss": Dimension(values=["ce", [1, 2], None]),
}


def told(number: int, values: dict) -> Verdict:
    outcome = ("finished", "finished", "stopped", "failed", "impossible")[number % 5]
    goals = {"top1": 90 - 10 * abs(np.log10(values["lr"]) + 3), "macs": 1e9 - 1e8 * values["r"]}
    return Verdict(outcome=outcome, objectives=goals if outcome == "finished" else {}, curve={1: 20.0})


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
@pytest.mark.parametrize("objectives", [[TOP1], [TOP1, MACS]])
def test_equal_seeds_propose_equal_trials(algorithm: str, objectives: list[Objective]) -> None:
    if algorithm == "random" and len(objectives) > 1:
        pytest.skip("a random search has no objectives")

    def walk(seed: int) -> list[dict]:
        search = SearchSpec(algorithm=algorithm, trials=30, seed=seed, objectives=objectives)
        searcher, trials = make_searcher(search, SPACE), []
        for number in range(30):
            trials.append(searcher.propose(number))
            searcher.tell(number, told(number, trials[-1]))
        return trials

    trials = walk(0)
    assert walk(0) == trials
    assert walk(1) != trials
    assert all(1e-5 <= t["lr"] <= 1e-1 and t["r"] in range(5) and t["loss"] in ("ce", [1, 2], None) for t in trials)
    if algorithm == "random":
        assert {t["r"] for t in trials} == set(range(5)), "both ends are included"


def test_optuna_goes_where_results_are_good() -> None:
    """The best learning rate is 1e-3: of 40 later proposals more lie near it than chance would put there."""
    search = SearchSpec(algorithm="optuna", trials=60, objectives=[TOP1])
    searcher = make_searcher(search, SPACE)
    near = 0
    for number in range(60):
        values = searcher.propose(number)
        distance = abs(np.log10(values["lr"]) + 3)
        near += number >= 20 and distance < 0.5
        searcher.tell(number, Verdict(outcome="finished", objectives={"top1": 90 - 10 * float(distance)}))
    assert near > 20, "chance puts 10 of 40 within a factor of 3"
