"""Effects against least squares on a balanced design, and by hand where the design has holes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import Comparison, Effect
from orchestrator.reporting.effects import effects
from orchestrator.reporting.printed import effects_text
from specs.metrics import row


def effect(comparison: Comparison, column: str, **labels: str) -> Effect:
    (found,) = [e for e in comparison.effects if e.column == column and e.labels == labels]
    return found


@pytest.fixture
def noisy(lab_of: Callable[..., Any]) -> Any:
    """2 seeds × 3 × 2 with an interaction: merging costs less on top of distillation."""
    lab = lab_of(seeds=(0, 1)).finish(measured=lambda c: False)
    rng = np.random.default_rng(3)
    for c in lab.plan.combinations:
        r = {"none": 0, "r2": 2, "r4": 4}[c.labels["merging"]]
        soft = c.labels["distill"] == "soft"
        top1 = 90 - 0.4 * r + 1.5 * soft + 0.2 * r * soft + rng.normal(0, 0.2)
        lab.measure(c, [row("top1", top1), row("latency_ms", math.exp(1 - 0.1 * r + rng.normal(0, 0.05)))])
    return lab


@pytest.mark.parametrize("column", ["top1", "latency_ms"])
def test_a_balanced_design_gives_the_coefficients_of_least_squares(noisy: Any, column: str) -> None:
    comparison = compare(noisy.plan, noisy.store)
    runs = [
        (r.labels["merging"], r.labels["distill"], seed, value)
        for r in comparison.rows
        for seed, value in r.cells[column].by_seed.items()
    ]
    y = np.array([value for *_, value in runs])
    y = y if column == "top1" else np.log(y)
    dummies = {label: np.array([float(m == label) for m, *_ in runs]) for label in ("r2", "r4")}
    soft = np.array([float(d == "soft") for _, d, *_ in runs])
    seeds = [np.array([float(s == seed) for _, _, s, _ in runs]) for seed in (0, 1)]

    def scaled(coefficient: float) -> float:
        return coefficient if column == "top1" else 100 * math.expm1(coefficient)

    additive = np.linalg.lstsq(np.stack([*dummies.values(), soft, *seeds], axis=1), y, rcond=None)[0]
    assert effect(comparison, column, merging="r2").value == pytest.approx(scaled(additive[0]))
    assert effect(comparison, column, merging="r4").value == pytest.approx(scaled(additive[1]))
    assert effect(comparison, column, distill="soft").value == pytest.approx(scaled(additive[2]))

    products = [dummy * soft for dummy in dummies.values()]
    full = np.linalg.lstsq(np.stack([*dummies.values(), soft, *products, *seeds], axis=1), y, rcond=None)[0]
    for i, label in enumerate(dummies):
        found = effect(comparison, column, merging=label, distill="soft")
        assert found.value == pytest.approx(scaled(full[3 + i]))
        assert found.alone["merging"] == pytest.approx(scaled(full[i]))
        assert found.alone["distill"] == pytest.approx(scaled(full[2]))
        assert found.on_top("merging") == pytest.approx(scaled(full[i] + full[3 + i]))


def test_pairs_and_standard_error_by_hand(noisy: Any) -> None:
    comparison = compare(noisy.plan, noisy.store)
    cells = {(r.labels["merging"], r.labels["distill"]): r.cells["top1"].by_seed for r in comparison.rows}
    of_seed = [np.mean([cells["r2", d][s] - cells["none", d][s] for d in ("none", "soft")]) for s in (0, 1)]
    found = effect(comparison, "top1", merging="r2")
    assert (found.num_pairs, found.relative, found.unit) == (4, False, "points")
    assert found.value == pytest.approx(np.mean(of_seed))
    assert found.std_error == pytest.approx(np.std(of_seed, ddof=1) / math.sqrt(2))
    assert effect(comparison, "latency_ms", merging="r2").unit == "%"


def measured_as(lab: Any, top1: dict[tuple[str, str, int], float], macs: dict[str, float]) -> Comparison:
    """The lab with these values: top-1 by merging, distillation and seed; MACs by merging, the same for all seeds."""
    lab.finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        merging = c.labels["merging"]
        if (merging, c.labels["distill"], c.seed) in top1:
            value = top1[merging, c.labels["distill"], c.seed]
            lab.measure(c, [row("top1", value), row("macs", macs[merging])])
    return compare(lab.plan, lab.store)


def test_seeds_are_the_evidence_not_the_settings(lab_of: Callable[..., Any]) -> None:
    """By hand: r2 costs 1 and 3 points with seed 0, 2 and 4 with seed 1, 5 and 7 with seed 2."""
    costs = {("none", 0): 1, ("soft", 0): 3, ("none", 1): 2, ("soft", 1): 4, ("none", 2): 5, ("soft", 2): 7}
    plain = {("none", d, s): 90.0 for d, s in costs}
    merged = {("r2", d, s): 90.0 - cost for (d, s), cost in costs.items()}
    lab = lab_of(seeds=(0, 1, 2), merging=("none", "r2"))
    comparison = measured_as(lab, plain | merged, {"none": 8e6, "r2": 4e6})
    found = effect(comparison, "top1", merging="r2")
    # Means of the seeds: −2, −3, −6. Mean −11/3, variance (25/9 + 4/9 + 49/9) / 2 = 13/3, by 3 seeds: 13/9.
    assert found.value == pytest.approx(-11 / 3)
    assert found.std_error == pytest.approx(math.sqrt(13) / 3)
    assert found.num_pairs == 6
    # Distillation is worth 0 without merging, and −2 with it, whatever the seed: no spread, and one value of each.
    both = effect(comparison, "top1", merging="r2", distill="soft")
    assert (both.value, both.std_error, both.num_pairs) == (-2, None, 1)


def test_counts_are_one_value_however_many_seeds_there_are(lab_of: Callable[..., Any]) -> None:
    top1 = {(m, d, s): 80.0 + s for m in ("none", "r2") for d in ("none", "soft") for s in (0, 1, 2)}
    comparison = measured_as(lab_of(merging=("none", "r2")), top1, {"none": 8e6, "r2": 4e6})
    found = effect(comparison, "macs", merging="r2")
    assert found.value == pytest.approx(-50)
    assert (found.std_error, found.num_pairs) == (None, 2)


def test_one_seed_has_no_standard_error(lab_of: Callable[..., Any]) -> None:
    top1 = {("none", "none", 0): 80.0, ("r2", "none", 0): 79.0, ("none", "soft", 0): 82.0, ("r2", "soft", 0): 79.0}
    comparison = measured_as(lab_of(seeds=(0,), merging=("none", "r2")), top1, {"none": 8e6, "r2": 4e6})
    found = effect(comparison, "top1", merging="r2")
    assert (found.value, found.std_error, found.num_pairs) == (-2, None, 2)


def test_a_seed_that_lacks_a_setting_weighs_less(lab_of: Callable[..., Any]) -> None:
    """By hand: −1 and −2 with seed 0, −6 with seed 1. Mean −3; the seeds' deviations from it add up to 3 and −3."""
    top1 = {("none", "none", 0): 80.0, ("r2", "none", 0): 79.0, ("none", "soft", 0): 82.0, ("r2", "soft", 0): 80.0}
    top1 |= {("none", "none", 1): 80.0, ("r2", "none", 1): 74.0}
    comparison = measured_as(lab_of(seeds=(0, 1), merging=("none", "r2")), top1, {"none": 8e6, "r2": 4e6})
    found = effect(comparison, "top1", merging="r2")
    assert (found.value, found.num_pairs) == (-3, 3)
    assert found.std_error == pytest.approx(math.sqrt((9 + 9) * 2 / 1) / 3)


def test_holes_give_fewer_pairs_and_no_bias(noisy: Any) -> None:
    """Without r2 under distillation, r2 is set against plain `none` alone."""
    for c in noisy.plan.combinations:
        if c.labels == {"merging": "r2", "distill": "soft"}:
            noisy.store.delete(f"stages/{c.measured_by}")
    comparison = compare(noisy.plan, noisy.store)
    cells = {(r.labels["merging"], r.labels["distill"]): r.cells["top1"].by_seed for r in comparison.rows}
    found = effect(comparison, "top1", merging="r2")
    assert found.num_pairs == 2
    assert found.value == pytest.approx(np.mean([cells["r2", "none"][s] - cells["none", "none"][s] for s in (0, 1)]))
    assert not [e for e in comparison.effects if e.labels == {"merging": "r2", "distill": "soft"}]


def test_other_conditions_are_never_paired(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0,), distill=("none",)).finish(measured=lambda c: False)
    for c in lab.plan.combinations:
        lab.measure(c, lab.rows(c, {"device": "cpu", "threads": 2 if c.labels["merging"] == "r4" else 1}))
    comparison = compare(lab.plan, lab.store)
    assert [e.labels for e in comparison.effects if e.column == "latency_ms"] == [{"merging": "r2"}]
    assert [e.labels for e in comparison.effects if e.column == "top1"] == [{"merging": "r2"}, {"merging": "r4"}]
    assert effect(comparison, "latency_ms", merging="r2").std_error is None


def test_what_merging_does_on_top_of_distillation_is_said(noisy: Any) -> None:
    comparison = compare(noisy.plan, noisy.store)
    text = effects_text(comparison)
    found = effect(comparison, "top1", merging="r4", distill="soft")
    for start, value in (
        ("merging=r4 without distill=soft", found.alone["merging"]),
        ("merging=r4 on top of distill=soft", found.on_top("merging")),
        ("merging=r4 × distill=soft (interaction)", found.value),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(start)]
        assert f"{value:+.2f}" in line


def test_nothing_to_compare_is_said(lab: Any) -> None:
    assert "There is no effect to show" in effects_text(compare(lab.plan, lab.store))


def test_any_number_of_axes(noisy: Any) -> None:
    """More settings than a 64-bit number can name: the same runs twice, which differ on 45 further axes."""
    comparison = compare(noisy.plan, noisy.store)
    rows = [
        r.model_copy(update={"labels": r.labels | {f"axis{i}": label for i in range(45)}})
        for label in ("here", "there")
        for r in comparison.rows
    ]
    twice = comparison.model_copy(update={"rows": tuple(rows)})
    twice = twice.model_copy(update={"effects": effects(twice)})
    for labels in ({"merging": "r2"}, {"distill": "soft"}, {"merging": "r4", "distill": "soft"}):
        once, found = effect(comparison, "top1", **labels), effect(twice, "top1", **labels)
        assert found.value == pytest.approx(once.value)
        assert found.num_pairs == 2 * once.num_pairs
    assert not any("axis0" in e.labels for e in twice.effects)
