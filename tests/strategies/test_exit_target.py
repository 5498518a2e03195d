"""The search for a threshold against all thresholds tried one by one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from strategies import registry
from strategies.claims import conflicts
from strategies.compose import build_model, compose
from strategies.dynamic.exit_head import ExitWays
from strategies.dynamic.exit_target import choices, meet
from strategies.knobs import found_setting, knob_of, sweeps_of, trained_setting, turned
from strategies.ways_out import Target
from tests.strategies.toys import facts_for, images, strategy, student, toy

MACS = np.array([0.3, 0.55, 0.8, 1.02])


def recorded(n: int, seed: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of n images at three exits, with ties where there are few levels, and hits at four ways out."""
    draw = np.random.default_rng(seed)
    confidence = draw.uniform(0.1, 1, (3, n))
    if levels is not None:
        confidence = np.ceil(confidence * levels) / levels  # 1.0 is among them
    return confidence.astype(np.float32), draw.random((4, n)) < np.array([[0.5], [0.6], [0.7], [0.75]])


def outcome(confidence: np.ndarray, hits: np.ndarray, threshold: float) -> tuple[float, int]:
    """Expected MACs and hits, image by image and exit by exit."""
    cost, right = 0.0, 0
    for image in range(confidence.shape[1]):
        way = next((a for a in range(3) if confidence[a, image] > np.float32(threshold)), 3)
        cost, right = cost + MACS[way], right + int(hits[way, image])
    return cost / confidence.shape[1], right


def every_threshold(confidence: np.ndarray) -> list[float]:
    """One at each confidence, one between neighbours, and both ends."""
    levels = sorted(set(confidence.flatten().tolist()))
    return sorted({0.0, 1.0, *levels, *((a + b) / 2 for a, b in zip([0.0, *levels], levels, strict=False))})


@pytest.mark.parametrize(("n", "levels"), [(1, None), (7, 3), (40, None), (60, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_choice_does_what_it_says(n: int, levels: int | None, seed: int) -> None:
    confidence, hits = recorded(n, seed, levels)
    found = choices(confidence, hits, MACS)
    assert (np.diff(found.threshold) > 0).all()
    for threshold, macs, right in zip(found.threshold, found.macs, found.hits, strict=True):
        assert (macs, right) == pytest.approx(outcome(confidence, hits, threshold), rel=1e-12)
    everything = {outcome(confidence, hits, t) for t in every_threshold(confidence)}
    assert {(round(m, 9), h) for m, h in everything} == {
        (round(float(m), 9), int(h)) for m, h in zip(found.macs, found.hits, strict=True)
    }


@pytest.mark.parametrize("wanted", [0.2, 0.3, 0.42, 0.55, 0.7, 0.9, 0.999])
@pytest.mark.parametrize(("n", "levels"), [(1, None), (40, None), (60, 9)])
def test_a_budget_is_used_up_and_not_exceeded(wanted: float, n: int, levels: int | None) -> None:
    confidence, hits = recorded(n, 3, levels)
    found = meet(Target("target_macs", wanted), confidence, hits, MACS)
    tried = [outcome(confidence, hits, t)[0] for t in every_threshold(confidence)]
    fitting = [macs for macs in tried if macs <= wanted + 1e-9]
    assert found.met == bool(fitting)
    assert found.expected_macs == pytest.approx(max(fitting) if fitting else min(tried))
    assert outcome(confidence, hits, found.threshold)[0] == pytest.approx(found.expected_macs)
    assert found.kept_accuracy == outcome(confidence, hits, found.threshold)[1] / hits[3].sum()


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("levels", [None, 9])
def test_accuracy_is_kept_at_the_fewest_macs(wanted: float, levels: int | None) -> None:
    confidence, hits = recorded(60, 5, levels)
    found = meet(Target("target_accuracy", wanted), confidence, hits, MACS)
    tried = [outcome(confidence, hits, t) for t in every_threshold(confidence)]
    assert found.met
    assert found.expected_macs == pytest.approx(min(m for m, right in tried if right >= wanted * hits[3].sum() - 1e-9))
    macs, right = outcome(confidence, hits, found.threshold)
    assert (macs, right / hits[3].sum()) == pytest.approx((found.expected_macs, found.kept_accuracy))
    assert found.kept_accuracy >= wanted


def test_thresholds_keep_away_from_confidences() -> None:
    """Rounding in another batch must move no image."""
    confidence, hits = recorded(30, 7)
    found = choices(confidence, hits, MACS).threshold[:-1]
    levels = np.unique(confidence)
    gaps = np.diff(np.concatenate([[0], levels]))
    assert np.abs(found[:, None] - levels).min(axis=1) == pytest.approx(gaps / 2, rel=1e-3)


def test_neighbouring_numbers_and_no_numbers() -> None:
    a = np.float32(0.5)
    confidence = np.array([[a, np.nextafter(a, np.float32(1)), np.nan, 1.0]], dtype=np.float32)
    found = choices(confidence, np.ones((2, 4), dtype=bool), np.array([0.5, 1.0]))
    assert found.macs.tolist() == [0.625, 0.75, 0.875, 1.0]  # no threshold lets the third image leave
    assert found.threshold[1] == a  # nothing lies between the two
    nobody_right = meet(Target("target_accuracy", 0.9), confidence, np.zeros((2, 4), dtype=bool), np.array([0.5, 1.0]))
    assert (nobody_right.expected_macs, nobody_right.kept_accuracy) == (0.625, 1.0)


def between(confidence: torch.Tensor) -> float:
    """A threshold that half of an even number of images exceed."""
    middle = confidence.sort().values[len(confidence) // 2 - 1 : len(confidence) // 2 + 1]
    return float(middle.mean())


def spread(options: dict[str, Any], *others: Any) -> Any:
    acting = strategy("early_exit", options)
    network = student(toy(), acting, *others)
    with torch.no_grad():
        for head in network.extras["early_exit"].values():
            head.fc.weight.mul_(40)
    return acting, network.eval()


@pytest.mark.parametrize("others", [[], [("adaptive_token_sampling", {})]])
def test_ways_out_say_what_the_network_would(others: list[Any]) -> None:
    acting, network = spread({"blocks": [0, 2], "target_macs": 0.5}, *(strategy(n, o) for n, o in others))
    ways, x = acting.ways_out(network), images(12)
    assert isinstance(ways, ExitWays)
    with torch.no_grad():
        said = ways.answers(x)
        for way in range(3):
            with ways.only(way):
                out = network(x)
            torch.testing.assert_close(out.logits, said.logits[way], atol=1e-5, rtol=1e-5)
            assert set(out.exit_block.tolist()) == {(0, 2, 3)[way]}
        with ways.without():
            plain = network(x)
        assert plain.exit_block is None
        torch.testing.assert_close(plain.logits, said.logits[2])
        threshold = between(said.confidence[0])
        ways.settle(threshold)
        left = network(x).exit_block
    assert said.confidence.shape == (2, 12)
    expected = torch.where(said.confidence[0] > threshold, 0, torch.where(said.confidence[1] > threshold, 2, 3))
    assert torch.equal(left, expected)
    assert left.tolist().count(0) == 6, "half of them leave at the first exit"


@pytest.mark.parametrize("later", [{"threshold": 0.3}, {"target_accuracy": 0.9}, {"threshold": 1.0}])
def test_weights_fit_whatever_sets_the_threshold(later: dict[str, Any]) -> None:
    acting, network = spread({"blocks": [0, 2], "target_macs": 0.5})
    ways, x = acting.ways_out(network), images(24)
    with torch.no_grad():
        confidence = ways.answers(x).confidence
        ways.settle(between(confidence[0]))
        other = strategy("early_exit", {"blocks": [0, 2], **later})
        rebuilt = compose(build_model(toy()), [other], facts_for(toy())).eval()
        rebuilt.load_network_state(network.network_state())
        left = rebuilt(x).exit_block
    threshold = later.get("threshold", between(confidence[0]))
    expected = torch.where(confidence[0] > threshold, 0, torch.where(confidence[1] > threshold, 2, 3))
    assert torch.equal(left, expected)
    assert (left == 0).sum() == {0.3: 24, 1.0: 0}.get(threshold, 12)


def test_weights_from_before_there_were_targets_are_read() -> None:
    _, network = spread({"blocks": [1], "threshold": 0.5})
    old = {k: v for k, v in network.network_state().items() if not k.endswith(".found")}
    assert len(old) == len(network.network_state()) - 1
    _, again = spread({"blocks": [1], "threshold": 0.5})
    again.load_network_state(old)
    assert float(again.extras["early_exit"]["1"].found) == 1


def test_thresholds_are_not_rounded_with_the_weights() -> None:
    """In bfloat16 0.999 is 1, and nobody would leave."""
    for options in ({"threshold": 0.999}, {"target_macs": 0.5}):
        _, network = spread({"blocks": [1], **options})
        head = network.extras["early_exit"]["1"]
        head.found.fill_(0.999)
        network.to(torch.bfloat16)
        assert head.fc.weight.dtype == torch.bfloat16
        assert float(getattr(head, head.in_force)) == pytest.approx(0.999)
        with torch.no_grad():
            head.fc.bias.copy_(torch.tensor([12.0] + [-40.0] * 9))
            head.fc.weight.zero_()
            assert network(images(2).to(torch.bfloat16)).exit_block.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_macs": 0.5, "threshold": 0.9}, "`threshold` and `target_macs` all say when images leave"),
        ({"target_macs": 0.5, "target_accuracy": 0.9}, "`target_macs` and `target_accuracy` all say"),
        ({"threshold": None}, "`threshold` is `null`, and no target finds one"),
        ({"target_macs": 1}, "less than 1"),
        ({"target_macs": 0}, "greater than 0"),
        ({"target_accuracy": 1.1}, "less than or equal to 1"),
    ],
)
def test_what_sets_the_threshold_is_one_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        strategy("early_exit", options)


def test_stages_without_target_keep_their_names() -> None:
    """Options that are not used are not part of what a digest is made of."""
    config = strategy("early_exit", {"blocks": [1]}).config
    assert config.model_dump(mode="json") == {
        "name": "early_exit",
        "blocks": [1],
        "head": "linear",
        "threshold": 0.9,
        "distill": "none",
    }
    aimed = strategy("early_exit", {"target_accuracy": 0.99}).config
    assert aimed.model_dump(mode="json")["target_accuracy"] == 0.99
    assert "target_macs" not in aimed.model_dump()
    assert registry.resolver("early_exit").model_validate_json(aimed.model_dump_json()) == aimed


def test_a_knob_that_a_target_set_can_be_turned() -> None:
    acting, network = spread({"blocks": [0, 2], "target_macs": 0.5})
    assert (knob_of(acting), trained_setting(acting)) == ("early_exit.threshold", None)
    acting.ways_out(network).settle(0.625)
    assert found_setting(acting, network) == 0.625
    other = turned(acting, 0.7)
    assert other.config.model_dump() == acting.config.model_dump(exclude={"target_macs"}) | {"threshold": 0.7}
    assert other.ways_out(network) is None
    assert not conflicts([other], facts_for(toy()))
    sweeps, _ = sweeps_of([acting], facts_for(toy()), None)
    assert json.loads(json.dumps(sweeps)) == {"early_exit.threshold": [0.5, 0.7, 0.9, 0.99, 1.0]}
    assert sweeps_of([acting], facts_for(toy()), {"early_exit.threshold": [0.4]})[0] == {"early_exit.threshold": [0.4]}
    assert sweeps_of([acting], facts_for(toy()), {}) == ({}, [])
