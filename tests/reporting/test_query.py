"""Queries and claims over stored rows whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.reporting.claims import TYPICAL_CLAIM, Setting, check, read_claim, setting_of
from orchestrator.reporting.compare import compare
from orchestrator.reporting.comparison import ClaimPart, Comparison
from orchestrator.reporting.printed import answer_text, claim_text
from orchestrator.reporting.query import Constraint, answer, parse
from specs.metrics import row

POINTS = {"none": (90.0, 3e9, 9.0), "r2": (89.0, 2e9, 6.0), "r4": (86.0, 1e9, 4.0)}
"""Merging → top-1, MACs, latency."""


@pytest.fixture
def lab(lab_of: Callable[..., Any]) -> Any:
    return lab_of(seeds=(0, 1), distill=("none",)).finish(measured=lambda c: False)


@pytest.fixture
def comparison(lab: Any) -> Comparison:
    for c in lab.plan.combinations:
        top1, macs, latency = POINTS[c.labels["merging"]]
        off = 0.1 * (2 * c.seed - 1)
        rows = [row("top1", top1 + off), row("macs", macs), row("latency_ms", latency * (1 + off / 10))]
        rows += [row("params", 5e6), row("throughput_ratio", 9.0 / latency * (1 + off / 10))]
        lab.measure(c, rows)
    return compare(lab.plan, lab.store)


def test_conditions_are_read() -> None:
    assert parse("macs<=1e9, latency_ms < 5,params==15M , x.kept>-.5") == (
        Constraint("macs", "<=", 1e9),
        Constraint("latency_ms", "<", 5.0),
        Constraint("params", "==", 15e6),
        Constraint("x.kept", ">", -0.5),
    )


@pytest.mark.parametrize("text", ["macs", "macs<=", "macs=1", "macs<=1e9;top1>3", "<=5", "macs<=1e9,", "macs<=5 ms"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"`--where`: .* is no condition. Write METRIC OPERATOR NUMBER"):
        parse(text)


def test_the_best_under_a_budget(comparison: Comparison) -> None:
    found = answer(comparison, "macs<=2.5G, latency<=7", "accuracy")
    (ranking,) = found.rankings
    assert [hit.combination for hit in ranking.hits] == ["merging=r2,distill=none", "merging=r4,distill=none"]
    assert ranking.hits[0].values == pytest.approx({"top1": 89.0, "macs": 2e9, "latency_ms": 6.0})
    assert "beyond the spread over seeds" in ranking.lead
    cheapest = answer(comparison, None, "macs").rankings[0].hits[0]
    assert cheapest.combination == "merging=r4,distill=none"


def test_a_lead_within_the_spread_is_said(lab: Any) -> None:
    for c in lab.plan.combinations:
        lab.measure(c, [row("top1", {"none": 90.0, "r2": 90.1, "r4": 80.0}[c.labels["merging"]] + c.seed)])
    found = answer(compare(lab.plan, lab.store), None)
    assert found.rankings[0].hits[0].combination == "merging=r2,distill=none"
    assert "is within the spread over seeds" in found.rankings[0].lead


def test_nothing_satisfies_and_the_nearest_is_named(comparison: Comparison) -> None:
    found = answer(comparison, "macs<=0.9e9, latency_ms<=5")
    assert found.rankings == ()
    assert found.nearest.combination == "merging=r4,distill=none"
    assert found.nearest.failed == ("macs <= 900000000 (it has 1e+09, off by 11 %)",)
    text = answer_text(found, comparison)
    assert "No combination with macs <= 900000000, latency_ms <= 5." in text
    assert "Nearest: `merging=r4,distill=none`" in text


def test_what_was_measured_differently_is_never_ranked_together(lab: Any) -> None:
    for c in lab.plan.combinations:
        lab.measure(c, lab.rows(c, {"device": "cpu", "threads": 2 if c.labels["merging"] == "none" else 1}))
    comparison = compare(lab.plan, lab.store)
    found = answer(comparison, "latency_ms<=100")
    assert [[hit.combination for hit in ranking.hits] for ranking in found.rankings] == [
        ["merging=none,distill=none"],
        ["merging=r2,distill=none", "merging=r4,distill=none"],
    ]
    assert {ranking.conditions["latency_ms"] for ranking in found.rankings} == {"A", "B"}
    text = answer_text(found, comparison)
    assert "each group is ranked by itself" in text
    assert "threads: [A] 2, [B] 1" in text
    assert "`slimvit measure lab --conditions threads=1`" in text


def test_values_that_cannot_be_judged_are_left_out_and_named(lab: Any) -> None:
    for c in lab.plan.combinations:
        unreliable = "the device was busy" if c.labels["merging"] == "r4" else None
        latency = row("latency_ms", None, reason="no such device") if c.labels["merging"] == "r2" else None
        lab.measure(c, [row("top1", 90.0), latency or row("latency_ms", 4.0, unreliable=unreliable)])
    found = answer(compare(lab.plan, lab.store), "latency_ms<=100")
    assert [hit.combination for hit in found.rankings[0].hits] == ["merging=none,distill=none"]
    assert found.left_out == {
        "merging=r2,distill=none": "latency_ms: no such device",
        "merging=r4,distill=none": "latency_ms: the device was busy",
    }


def test_metrics_that_do_not_exist_or_were_not_taken(comparison: Comparison, lab_of: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"`--where`: there is no metric `latencyms`; did you mean `latency_ms`\?"):
        answer(comparison, "latencyms<=5")
    with pytest.raises(
        UsageError, match=r"no combination has a value of `energy`: it was not taken here; measured are top1"
    ):
        answer(comparison, None, "energy")
    empty = lab_of(name="empty")
    with pytest.raises(UsageError, match=r"no combination has a value of `top1`: nothing is measured yet"):
        answer(compare(empty.plan, empty.store), None)


def parts(comparison: Comparison, text: str, setting: Setting) -> dict[str, ClaimPart]:
    return {part.text: part for part in check(read_claim(text), comparison, setting).parts}


def test_a_claim_part_by_part(comparison: Comparison) -> None:
    setting = Setting("vit_tiny_patch16_224", "imagenet")
    text = "macs<2.5G, top1>=83.2, throughput_ratio>=2.4, latency_ms<=6, energy_ratio<=1"
    result = check(read_claim(text), comparison, setting)
    assert (result.combination, result.budget) == ("merging=r2,distill=none", "macs < 2500000000")
    told = {part.text: part for part in result.parts}
    assert told["top1 >= 83.2"].holds is True
    assert told["throughput_ratio >= 2.4"].holds is False
    assert told["throughput_ratio >= 2.4"].value == pytest.approx(1.5)
    assert told["throughput_ratio >= 2.4"].reason == "over vit_tiny_patch16_224"
    assert told["latency_ms <= 6"].holds is None
    assert "the bound lies in its 95 % interval" in told["latency_ms <= 6"].reason
    assert (told["energy_ratio <= 1"].holds, told["energy_ratio <= 1"].value) == (None, None)
    assert "throughput_ratio >= 2.4: does not hold (measured: 1.5)" in claim_text(result)


def test_another_baseline_or_other_images_cannot_tell(comparison: Comparison) -> None:
    text = "params<15M, top1>=83.2, throughput_ratio>=0.9, baseline==vit_tiny_patch16_224, data==imagenet"
    told = parts(comparison, text, Setting("deit_tiny_patch16_224", "mnist5k"))
    assert told["top1 >= 83.2"].holds is None
    assert told["top1 >= 83.2"].reason == "the images are mnist5k, not imagenet"
    assert told["throughput_ratio >= 0.9"].holds is None
    assert told["throughput_ratio >= 0.9"].reason == "the baseline is deit_tiny_patch16_224, not vit_tiny_patch16_224"
    told = parts(comparison, text, Setting("vit_tiny_patch16_224", "imagenet"))
    assert {part.holds for part in told.values()} == {True}


def test_no_combination_under_the_budget(comparison: Comparison) -> None:
    result = check(read_claim("params<1M, top1>=1"), comparison, Setting("none", "mnist5k"))
    assert result.combination is None
    (part,) = result.parts
    assert part.holds is None
    assert part.reason.startswith("no combination has params < 1000000; the nearest")


def test_an_interval_of_one_measurement_straddles(lab_of: Callable[..., Any]) -> None:
    lab = lab_of(seeds=(0,), merging=("none",), distill=("none",)).finish(measured=lambda c: False)
    rows = [row("top1", 90.0), row("params", 1e6), row("throughput_ratio", 2.5, interval=(2.3, 2.7))]
    lab.measure(lab.plan.combinations[0], rows)
    told = parts(compare(lab.plan, lab.store), "params<15M, throughput_ratio>=2.4, top1>=80", setting_of(lab.plan))
    assert told["throughput_ratio >= 2.4"].holds is None
    assert "2.3 to 2.7" in told["throughput_ratio >= 2.4"].reason
    assert told["top1 >= 80"] == ClaimPart(text="top1 >= 80", value=90.0, holds=True, reason="on mnist5k; one seed")


@pytest.mark.parametrize("text", ["params<15M", "params<15M, data==imagenet", "smaller and faster"])
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--claim"):
        read_claim(text)


def test_the_typical_claim_is_in_every_comparison(finished: Any) -> None:
    (result,) = compare(finished.plan, finished.store).claims
    assert result.text == TYPICAL_CLAIM
    assert {p.text: p.holds for p in result.parts}["top1 >= 83.2"] is None  # not ImageNet
    assert setting_of(finished.plan) == Setting("vit_tiny_patch16_224", "mnist5k")
