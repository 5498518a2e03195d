"""What strategies share that choose patches by attention, and that let them wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strategies.compose import build_model, compose
from strategies.dynamic.exit_head import confidence
from strategies.dynamic.selection import choose, num_kept
from strategies.knobs import sweeps_of, turned
from tests.strategies.toys import facts_for, images, strategy, student, toy

KNOBS: dict[str, dict[str, Any]] = {
    "token_fusion": {"r": 5},
    "token_reorganization": {"keep_rate": 0.6},
    "slow_fast_tokens": {"keep_rate": 0.6},
    "token_idling": {"keep_rate": 0.65},
}


def test_of_equal_scores_the_earlier_goes_on() -> None:
    assert choose(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), 2, 1).going.tolist() == [[0, 1, 2]]


def test_rates_are_rounded_up_whatever_floats_say() -> None:
    assert [num_kept(n, 0.7) for n in (196, 139, 99, 10, 1)] == [138, 98, 70, 7, 1]
    assert num_kept(10, 0.1 + 0.2) == 3
    assert num_kept(64, 1e-6) == 1
    assert num_kept(64, 1.0) == 64


@pytest.mark.parametrize("name", KNOBS)
def test_a_trained_network_is_a_curve(name: str) -> None:
    """With the same weights, every setting of the knob runs, and removes less the plainer it is."""
    trained = strategy(name, KNOBS[name])
    weights = student(toy(), trained).network_state()
    (settings,) = sweeps_of([trained], facts_for(toy()), None)[0].values()
    assert len(settings) == 6
    tokens = []
    for setting in settings:
        acting = turned(trained, setting)
        network = compose(build_model(toy()), [acting], facts_for(toy())).eval()
        network.load_network_state(weights)
        acting.at(network, 1.0)
        with torch.no_grad():
            tokens.append(sum(network(images(2)).num_tokens))
    assert tokens == sorted(tokens, reverse=name == "token_fusion")
    assert len(set(tokens)) == 6
    assert max(tokens) == 4 * 65


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slow_fast_tokens", {"keep_rate": 0.5, "start": 1, "group": 3, "representative": True}),
        ("token_idling", {"keep_rate": 0.5}),
        ("token_reorganization", {"keep_rate": 0.5}),
        ("token_fusion", {"r": 6}),
    ],
)
def test_images_that_leave_early_take_their_waiting_tokens_with_them(name: str, options: dict[str, Any]) -> None:
    network = student(toy(), strategy(name, options), strategy("early_exit", {"blocks": [1, 2], "threshold": 0.0}))
    network.eval()
    x, left = images(), []
    for exit_head in network.depth.values():
        exit_head.register_forward_hook(note_middle)
    with torch.no_grad():
        for threshold in (1.0, None, 0.0):  # nobody leaves; who is surer than the middle one; everybody
            for exit_head in network.depth.values():
                exit_head.threshold.fill_(exit_head.middle if threshold is None else threshold)
            apart = torch.cat([network(one).logits for one in x.split(1)])
            out = network(x)
            left.append(out.exit_block.unique().tolist())
            torch.testing.assert_close(out.logits, apart, atol=1e-5, rtol=1e-5)
    assert left == [[3], [1, 2, 3], [1]]


def note_middle(exit_head: Any, _: Any, answer: Any) -> None:
    exit_head.middle = confidence(answer[0]).median()


@pytest.mark.parametrize("representative", [False, True])
def test_patches_merged_before_count_as_often_as_they_are(representative: bool) -> None:
    merging = strategy("token_merging", {"r": [12, 0, 0, 0]})
    waiting = strategy("slow_fast_tokens", {"start": 2, "group": 1, "representative": representative})
    network = student(toy(), merging, waiting).train()
    network.wants_tokens = True
    out = network(images())
    assert out.num_tokens == [53, 53, *[27 + representative] * 2]
    assert out.tokens.shape == (6, 65, 48)
    assert all(len(tokens.unique(dim=0)) == 53 for tokens in out.tokens)
    torch.testing.assert_close(out.logits, network.model.head(out.tokens[:, 1:].mean(1)), atol=1e-5, rtol=1e-5)
