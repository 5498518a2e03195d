from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.measurement.compute import counts_of_images, static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.dynamic.sampling import sample
from strategies.state import State
from tests.strategies.checks import DEIT, assert_images_do_not_mix, deit_with, outside_blocks, plain_block
from tests.strategies.toys import VARIANTS, facts_for, images, step, strategy, student, teacher, toy

NAME = "adaptive_token_sampling"


def picked_by_hand(scores: np.ndarray, num_levels: int) -> set[int]:
    """Of one image, straight from section 3: sort, sum up, scale, and look for the nearest at each level."""
    order = sorted(range(len(scores)), key=lambda j: scores[j])
    sums, total = [], 0.0
    for j in order:
        total += scores[j] / scores.sum()
        sums.append(total)
    scaled = [(c - sums[0]) / (sums[-1] - sums[0]) for c in sums]
    start = min(c for c in scaled if c > 0)
    found = set()
    for i in range(num_levels):
        level = start + (1 - start) * i / (num_levels - 1)
        found.add(order[min(range(len(scaled)), key=lambda j: abs(scaled[j] - level))])
    return found


@pytest.mark.parametrize("num_levels", [2, 7, 30, 200])
def test_patches_are_picked_as_the_paper_defines_it(num_levels: int) -> None:
    generator = torch.Generator().manual_seed(num_levels)
    scores = torch.rand(8, 40, generator=generator) ** 6
    counts = torch.tensor([40, 31, 40, 2, 17, 40, 9, 23])
    scores[torch.arange(40) >= counts.unsqueeze(1)] = 1e9  # what is behind an image's patches is never read
    found = sample(scores, counts, num_levels)
    for image, count in enumerate(counts.tolist()):
        expected = picked_by_hand(scores[image, :count].double().numpy(), num_levels)
        assert set(torch.nonzero(found[image]).squeeze(1).tolist()) == expected
    assert (found.sum(1) <= num_levels).all()


def test_equal_scores_one_patch_and_nothing_at_all_still_pick_something() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 5, [3.0, 7.0, 0.0, 0.0, 0.0]])
    picked = sample(scores, torch.tensor([5, 5, 1]), 3)
    assert picked.sum(1).tolist() == [3, 1, 1]
    assert picked[2].tolist() == [True, False, False, False, False]
    assert sample(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([3]), 1).tolist() == [[False, True, False]]


def looking_closely(variant: str = "plain", *others: Any, **options: Any) -> Any:
    """A toy network whose class token looks at some patches much more than at others."""
    network = student(toy(variant), *others, strategy(NAME, options))
    with torch.no_grad():
        for block in network.model.blocks:
            block.attn.qkv.weight.mul_(4)
    return network


def one_image(network: Any, image: Tensor, max_tokens: int, blocks: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """The definition on one image, with the whole attention matrix, whose rows are then chosen."""
    model = network.model
    x = network.embed(image.unsqueeze(0)).x[0]
    P, counts = model.num_prefix_tokens, []
    for i, block in enumerate(model.blocks):
        attn, normed = block.attn, block.norm1(x)
        q, k, v = attn.qkv(normed).reshape(len(x), 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        matrix = (q @ k.transpose(-2, -1) / math.sqrt(attn.head_dim)).softmax(-1)
        rows = list(range(len(x)))
        if i in blocks:
            scores = np.zeros(len(x) - P)
            for j in range(P, len(x)):
                for h in range(attn.num_heads):
                    scores[j - P] += float(matrix[h, 0, j].detach()) * float(v[h, j].detach().norm())
            rows = [*range(P), *sorted(P + j for j in picked_by_hand(scores, max_tokens - P))]
        y = (matrix[:, rows] @ v).transpose(0, 1).flatten(1)
        x = x[rows] + block.ls1(attn.proj(y))
        x = x + block.ls2(block.mlp(block.norm2(x)))
        counts.append(len(x))
    return model.forward_head(model.norm(x).unsqueeze(0))[0], counts


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (1, 3)])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "average_pool"])
def test_packed_batches_equal_single_images_one_after_the_other(variant: str, blocks: tuple[int, ...]) -> None:
    network = looking_closely(variant, max_tokens=30, blocks=blocks).eval()
    with torch.no_grad():
        out = network(images(5))
        alone = [one_image(network, image, 30, blocks) for image in images(5)]
    expected = torch.stack([logits for logits, _ in alone])
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)
    assert out.num_tokens == pytest.approx(np.mean([counts for _, counts in alone], axis=0).tolist())
    assert len({counts[-1] for _, counts in alone}) > 1, "images keep different numbers of tokens"


def test_gradients_flow_through_the_sampled_rows() -> None:
    network = looking_closely(max_tokens=30).train()
    target = torch.tensor([0, 3, 9])
    torch.nn.functional.cross_entropy(network(images(3)).logits, target).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    logits = torch.stack([one_image(network, image, 30, (1, 2, 3))[0] for image in images(3)])
    torch.nn.functional.cross_entropy(logits, target).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-5, rtol=1e-4)


def test_merged_tokens_attract_attention_by_their_size() -> None:
    merging = strategy("token_merging", {"r": 8, "blocks": [0]})
    assert_images_do_not_mix(looking_closely("plain", merging, max_tokens=30))


def test_images_that_leave_take_their_tokens_along() -> None:
    chosen = [strategy(NAME, {"max_tokens": 30}), strategy("early_exit", {"blocks": [1, 2], "threshold": 0.125})]
    network = student(toy(), *chosen).eval()
    with torch.no_grad():
        assert len(network(images()).exit_block.unique()) > 1
    assert_images_do_not_mix(network)


def test_turned_queries_and_keys_keep_their_places() -> None:
    assert_images_do_not_mix(looking_closely("plain", strategy("rotary_position", {}), max_tokens=30))


def test_stochastic_depth_is_drawn_for_each_image() -> None:
    """A dropped half adds nothing: the tokens of an image share the draw, images do not."""
    sampling = strategy(NAME, {"max_tokens": 30, "blocks": [0]})
    network = student(toy(drop_path_rate=0.9), sampling).train()
    seen: list[tuple[Tensor, ...]] = []

    def watch(state: State) -> State:
        assert state.lengths is not None
        seen.append(state.x[0].split(state.lengths.tolist()))
        return state

    network.entry.update({2: watch, 3: watch})
    torch.manual_seed(0)
    network(images(12))
    unmoved = [[bool(torch.equal(a, b)) for a, b in zip(*tokens, strict=True)] for tokens in zip(*seen, strict=True)]
    assert all(len(set(tokens)) == 1 for tokens in unmoved)
    assert 0 < sum(tokens[0] for tokens in unmoved) < 12


@pytest.mark.parametrize("model", DEIT)
def test_macs_are_those_of_the_sampled_rows(model: str) -> None:
    """Without values all scores are 0, one patch is picked, and block 3 computes two rows of 197 keys."""
    network, D = deit_with(model, NAME, {})
    assert static_macs(network, (3, 224, 224)) is None
    sampling = 3 * 197 * D**2 + 2 * 2 * 197 * D + 2 * D**2 + 2 * 8 * D**2
    expected = outside_blocks(D) + 3 * plain_block(D) + sampling + 8 * plain_block(D, 2)
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert counts_of_images(network, torch.zeros(1, 3, 224, 224))[0].macs == expected


def test_it_works_on_a_network_that_was_trained_without_it() -> None:
    plain, sampled = student(toy()).eval(), student(toy(), strategy(NAME, {"max_tokens": 5000})).eval()
    sampled.load_network_state(plain.network_state())
    with torch.no_grad():
        out = sampled(images())
        # With levels enough every patch is picked but the one whose scaled sum is 0.
        assert out.num_tokens[0] == 65
        assert out.num_tokens[3] >= 60
        torch.testing.assert_close(out.logits, plain(images()).logits, atol=0.05, rtol=0.05)


def test_training_computes_as_few_tokens_as_evaluation() -> None:
    acting = strategy(NAME, {"max_tokens": 20})
    network = student(toy(), acting)
    step(network, [acting], images(), torch.tensor([0, 3, 9, 2, 2, 7]), teacher(acting))
    with torch.no_grad():
        assert network.train()(images()).num_tokens == network.eval()(images()).num_tokens


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="6 or more"):
        strategy(NAME, {"max_tokens": 5}).claims(facts_for(toy("registers")))
    with pytest.raises(OptionError, match="no block 4"):
        strategy(NAME, {"blocks": [1, 4]}).claims(facts_for(toy()))
    mapped = ModelSpec(model=toy().model, args={**toy().args, "global_pool": "map"})
    with pytest.raises(OptionError, match="pools with `map`"):
        strategy(NAME, {}).claims(facts_for(mapped))
