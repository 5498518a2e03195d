"""Probability of being on the front, and hypervolume, against independent computations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Cell, Column
from orchestrator.reporting.front import find_column, front, with_axes
from orchestrator.reporting.hypervolume import hypervolume
from orchestrator.reporting.uncertainty import draws, intervals, pooled
from specs.metrics import row

TOP1 = Column(key="top1", metric="top1", unit="%", direction="higher", description="")
SPEED = Column(key="throughput", metric="throughput", unit="images/s", direction="higher", description="")


def cell(*values: float) -> Cell:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(value=float(np.mean(values)), std=std, num_seeds=len(values), by_seed=dict(enumerate(values)))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_hypervolume_by_counting_unit_squares(points: list[tuple[int, int]]) -> None:
    """On a grid the dominated area is the number of squares that some point dominates."""
    squares = sum(any(q > x and c <= y for q, c in points) for x, y in itertools.product(range(6), range(6)))
    quality, cost = (np.array([p[i] for p in points], dtype=float) for i in (0, 1))
    assert hypervolume(quality, cost, (0.0, 6.0)) == pytest.approx(squares)


def test_hypervolume_by_monte_carlo() -> None:
    rng = np.random.default_rng(1)
    quality, cost = rng.random((3, 20)), rng.random((3, 20))
    area = hypervolume(quality, cost, (0.2, 0.9))
    x, y = 0.2 + 0.8 * rng.random(100_000), 0.9 * rng.random(100_000)
    for i in range(3):
        hit = np.zeros(len(x), dtype=bool)
        for q, c in zip(quality[i], cost[i], strict=True):
            hit |= (q >= x) & (c <= y)
        assert area[i] == pytest.approx(hit.mean() * 0.8 * 0.9, abs=0.01)


def test_pooled_spread_is_the_mean_square_within() -> None:
    cells = [cell(90.0, 91.0, 92.5), cell(80.0, 80.4), cell(70.0)]
    within = [np.var([90.0, 91.0, 92.5]) * 3, np.var([80.0, 80.4]) * 2]
    spread = pooled(TOP1, cells)
    assert spread is not None
    assert (spread.std, spread.degrees) == (pytest.approx(np.sqrt(sum(within) / 3)), 3)
    relative = pooled(SPEED, [cell(100.0, 110.0), cell(1000.0, 1100.0)])
    assert relative is not None
    assert relative.std == pytest.approx(np.std([100.0, 110.0], ddof=1) / 105)


def test_intervals_are_students(lab_of: Callable[..., Any]) -> None:
    """Two seeds, one combination: the classical interval, t(1, 0.975) = 12.706."""
    low, high = intervals(TOP1, [cell(90.0, 91.0)])[0]
    half = 12.706 * np.std([90.0, 91.0], ddof=1) / np.sqrt(2)
    assert (low, high) == (pytest.approx(90.5 - half, rel=0.02), pytest.approx(90.5 + half, rel=0.02))


def test_exact_values_do_not_move() -> None:
    drawn = draws(SPEED, [cell(5.0, 5.0), cell(7.0, 8.0), cell(6.0)], np.random.default_rng(0), 100)
    assert drawn[:, 0].tolist() == [5.0] * 100
    assert drawn[:, 1].std() > 0
    assert drawn[:, 2].std() > 0


def test_probabilities_of_a_close_race_a_clear_winner_and_a_clear_loser(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(merging=("none", "r2", "r4"), distill=("none",), seeds=(0, 1, 2))
    lab.finish(measured=lambda c: False)
    top1 = {"none": (90.0, 90.2, 90.4), "r2": (90.1, 90.2, 90.3), "r4": (80.0, 80.2, 80.4)}
    for c in lab.plan.combinations:
        rows = [
            row("top1", top1[c.labels["merging"]][c.seed]),
            row("macs", 1e9 if c.labels["merging"] != "r4" else 2e9),
        ]
        lab.measure(c, rows)
    found = {r.labels["merging"]: r.front_probability for r in compare(lab.plan, lab.store).rows}
    # Equally dear, equal means: each is the better one half of the time, and one always is.
    assert found["none"] == pytest.approx(0.5, abs=0.05)
    assert found["none"] + found["r2"] == pytest.approx(1.0)
    assert found["r4"] == 0.0


def test_one_seed_gives_no_probability(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0,)).finish()
    comparison = compare(lab.plan, lab.store)
    assert {r.front_probability for r in comparison.rows} == {None}
    assert [volume.std for volume in comparison.hypervolumes] == [None]


def test_hypervolume_of_the_comparison_by_hand(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    points = [(r.cells["top1"].value, r.cells["macs"].value) for r in comparison.rows]
    worst = (min(q for q, _ in points), max(c for _, c in points))
    best = sorted((c, q) for q, c in points if not any((a >= q and b <= c and (a, b) != (q, c)) for a, b in points))
    area = sum(
        (following - c) * (q - worst[0])
        for (c, q), following in zip(best, [c for c, _ in best[1:]] + [worst[1]], strict=True)
    )
    (volume,) = comparison.hypervolumes
    assert volume.value == pytest.approx(area)
    assert volume.reference == worst
    assert volume.std is not None
    assert 0 < volume.std < volume.value


def test_unreliable_values_are_neither_best_nor_on_a_front_and_named(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0,), merging=("none", "r2", "r4"), distill=("none",))
    lab.finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        doubt = "the baseline drifted by 9 %" if c.labels["merging"] == "r4" else None
        lab.measure(
            c, [r.model_copy(update={"unreliable": doubt}) if r.name == "latency_ms" else r for r in lab.rows(c)]
        )
    comparison = compare(lab.plan, lab.store, cost="latency_ms")
    doubtful = next(r for r in comparison.rows if r.labels["merging"] == "r4")
    assert doubtful.cells["latency_ms"].unreliable == "the baseline drifted by 9 %"
    assert not doubtful.pareto
    assert not doubtful.cells["latency_ms"].best
    assert doubtful.name not in front(comparison, "top1", "latency_ms")
    assert next(r for r in comparison.rows if r.labels["merging"] == "r2").cells["latency_ms"].best
    (note,) = [n for n in comparison.notes if n.startswith("Unreliable")]
    assert f"latency_ms of {doubtful.name}. Why: the baseline drifted by 9 %." in note
    assert "`slimvit measure lab --conditions repeat=1`" in note


def test_an_unreliable_seed_stays_out_of_the_mean(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0, 1), merging=("none",), distill=("none",))
    lab.finish(measured=lambda c: False)
    lab.measure(lab.combination("none", "none", 0), [row("latency_ms", 4.0)])
    lab.measure(lab.combination("none", "none", 1), [row("latency_ms", 9.0, unreliable="busy")])
    found = compare(lab.plan, lab.store).rows[0].cells["latency_ms"]
    assert (found.value, found.num_seeds, found.unreliable) == (4.0, 1, None)
    assert found.reason == "left out of the mean: seed 1 is unreliable: busy"


def test_names_of_axes(finished: Any) -> None:
    comparison = compare(finished.plan, finished.store)
    assert find_column(comparison, "accuracy").key == "top1"
    assert find_column(comparison, "throughput").key == "throughput_b64"
    assert find_column(comparison, "energy_j") is None
    assert with_axes(comparison, "latency", "top5").cost == "latency_ms"
    with pytest.raises(UsageError, match=r"`latencyms` cannot be an axis .*did you mean `latency_ms`\?"):
        with_axes(comparison, "latencyms")
