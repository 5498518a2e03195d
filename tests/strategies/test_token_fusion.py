from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.attention import Look
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.dynamic.bipartite_matching import lengthen, match, merge, total_size
from strategies.dynamic.token_fusion import MergeAtFullLength, Prune
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.test_token_merging import merged_by_hand
from tests.strategies.toys import images, strategy, student, toy


def random_state(num_images: int, num_tokens: int, protected: int) -> tuple[State, Look]:
    g = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_images, num_tokens, 5, generator=g, dtype=torch.float64)
    size = torch.randint(1, 5, (num_images, num_tokens, 1), generator=g).double()
    position = torch.rand(num_images, num_tokens, 2, generator=g, dtype=torch.float64)
    keys = torch.randn(num_images, 2, num_tokens, 4, generator=g, dtype=torch.float64)
    return State(x, protected, size=size, position=position), Look(keys=keys)


@pytest.mark.parametrize(("num_tokens", "protected", "r"), [(9, 1, 3), (10, 2, 4), (11, 5, 2)])
def test_late_blocks_merge_at_the_length_of_the_longest(num_tokens: int, protected: int, r: int) -> None:
    state, look = random_state(3, num_tokens, protected)
    after = MergeAtFullLength(r, True)(state, look, True)
    metric = look.keys.mean(1)
    for i in range(3):
        size = state.size[i, :, 0].tolist()
        mean, total, went = merged_by_hand(metric[i].tolist(), state.x[i].tolist(), size, r, protected)
        where, _, _ = merged_by_hand(metric[i].tolist(), state.position[i].tolist(), size, r, protected)
        for place, m in enumerate(mean):
            longest = max(math.hypot(*state.x[i, t].tolist()) for t in range(num_tokens) if went[t] == place)
            expected = [value / math.hypot(*m) * longest for value in m]
            torch.testing.assert_close(after.x[i, place], torch.tensor(expected, dtype=torch.float64))
        assert after.size[i, :, 0].tolist() == total
        assert after.source[i].tolist() == went
        torch.testing.assert_close(after.position[i], torch.tensor(where, dtype=torch.float64))
    assert torch.equal(after.x[:, :protected], state.x[:, :protected])


def test_early_blocks_drop_what_was_matched() -> None:
    state, look = random_state(3, 10, 2)
    after = Prune(3, True)(state, look, True)
    metric = look.keys.mean(1)
    for i in range(3):
        size = state.size[i, :, 0].tolist()
        _, total, went = merged_by_hand(metric[i].tolist(), state.x[i].tolist(), size, 3, 2)
        assert after.size[i, :, 0].tolist() == total
        assert after.source[i].tolist() == went
        for place in range(7):
            members = [t for t in range(10) if went[t] == place]
            # Of a group, the token at an odd position stays: the others are the even ones matched with it.
            stays = members[0] if len(members) == 1 else next(t for t in members if t % 2)
            assert torch.equal(after.x[i, place], state.x[i, stays])
            assert torch.equal(after.position[i, place], state.position[i, stays])


def test_gradients_of_merging_at_full_length() -> None:
    torch.manual_seed(0)
    matching = match(torch.randn(2, 9, 4), 3, 1)
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: lengthen(merge(t, None, matching)[0], t, matching), (x,))


def test_sizes_are_those_of_merging() -> None:
    matching = match(torch.randn(2, 9, 4), 3, 1)
    for size in (None, torch.rand(2, 9, 1)):
        torch.testing.assert_close(total_size(size, matching), merge(torch.randn(2, 9, 3), size, matching)[1])


@pytest.mark.parametrize(("prune_until", "pruning"), [(0.0, 0), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_the_first_share_of_the_depth_prunes(prune_until: float, pruning: int) -> None:
    network = student(toy(), strategy("token_fusion", {"r": 4, "prune_until": prune_until}))
    assert [type(network.tokens[b]) for b in range(4)] == [Prune] * pruning + [MergeAtFullLength] * (4 - pruning)


def test_features_stand_on_the_full_grid() -> None:
    fusing = strategy("token_fusion", {"r": 20})
    network = student(toy(), fusing, strategy("feature", {"pairs": [[1, 0], [3, 3]]})).train()
    out = network(images(2))
    assert out.num_tokens == [45, 25, 13, 7]
    for i in range(2):
        assert len(out.features[1][i].unique(dim=0)) == 25
        assert len(out.features[3][i].unique(dim=0)) == 7
    assert fusing.measure(out) == {"tokens_kept": 7.0}


@pytest.mark.parametrize("options", [{"r": 8}, {"r": 13, "prune_until": 0.25}])
@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_counted_macs_equal_the_closed_form(model: str, options: dict[str, Any]) -> None:
    facts = facts_of(ModelSpec(model=model))
    network = build_model(ModelSpec(model=model), device="meta")
    network = compose(network, [strategy("token_fusion", options)], Facts(facts)).eval()
    N, D, E, r = 197, facts.embed_dim, facts.head_dim, options["r"]
    total = 196 * D * 768 + D * 1000
    for _ in range(12):
        A = (N - 1) // 2
        removed = min(r, A)
        total += 4 * N * D * D + 2 * N * N * D + A * (N - 1 - A) * E  # attention, similarities of A and B
        N -= removed
        total += 8 * N * D * D
    assert static_macs(network, (3, 224, 224)) == total
