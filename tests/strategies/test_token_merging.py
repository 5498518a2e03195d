from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.measurement.compute import static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.attention import attend
from strategies.catalog import facts_of
from strategies.compose import build_model, compose
from strategies.dynamic.bipartite_matching import follow, match, merge, num_merged
from strategies.dynamic.merging import ramp
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.toys import facts_for, images, strategy, student, toy


def merged_by_hand(
    metric: list[list[float]], x: list[list[float]], size: list[float], r: int, protected: int
) -> tuple[list[list[float]], list[float], list[int]]:
    """One image, in plain Python, straight from section 3 of the paper: tokens, sizes, and where each token went."""

    def cosine(u: list[float], v: list[float]) -> float:
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        return dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))

    edges = []
    for a in range(0, len(x), 2):
        options = [(cosine(metric[a], metric[b]), b) for b in range(1, len(x), 2) if b >= protected]
        if a >= protected:
            edges.append((*max(options), a))
    chosen = {a: b for _, b, a in sorted(edges, reverse=True)[:r]}
    groups = {t: [t, *(a for a, b in chosen.items() if b == t)] for t in range(len(x)) if t not in chosen}
    order = [t for t in groups if t < protected]
    order += [t for t in groups if t >= protected and t % 2 == 0] + [t for t in groups if t >= protected and t % 2]
    total = {t: sum(size[i] for i in group) for t, group in groups.items()}
    mean = [[sum(size[i] * x[i][d] for i in groups[t]) / total[t] for d in range(len(x[0]))] for t in order]
    went = [order.index(chosen.get(t, t)) for t in range(len(x))]
    return mean, [total[t] for t in order], went


@pytest.mark.parametrize(("num_tokens", "protected", "r"), [(9, 1, 3), (10, 2, 4), (11, 5, 2), (8, 0, 4), (7, 1, 3)])
def test_matching_and_merging_equal_the_papers_definition(num_tokens: int, protected: int, r: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    metric = torch.randn(3, num_tokens, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, num_tokens, 5, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 6, (3, num_tokens, 1), generator=generator).double()
    matching = match(metric, r, protected)
    tokens, sizes = merge(x, size, matching)
    places = follow(None, matching)
    for i in range(3):
        mean, total, went = merged_by_hand(metric[i].tolist(), x[i].tolist(), size[i, :, 0].tolist(), r, protected)
        torch.testing.assert_close(tokens[i], torch.tensor(mean, dtype=torch.float64))
        assert sizes[i, :, 0].tolist() == total
        assert places[i].tolist() == went
    assert torch.equal(tokens[:, :protected], x[:, :protected])


def test_no_step_removes_more_than_half_and_protected_tokens_stay() -> None:
    for tokens in range(1, 40):
        for protected in range(min(tokens, 7)):
            r = num_merged(tokens, protected, 10**6)
            assert r == (tokens - protected) // 2
            if r:
                matching = match(torch.randn(1, tokens, 3), r, protected)
                assert sorted(matching.kept[0].tolist() + matching.merged[0].tolist()) == list(range(tokens))
                assert matching.kept[0, :protected].tolist() == list(range(protected))
                assert int(matching.into.min()) >= protected


def test_two_steps_are_followed_through() -> None:
    x = torch.randn(2, 9, 4)
    first = match(torch.randn(2, 9, 4), 3, 1)
    y, size = merge(x, None, first)
    second = match(torch.randn(2, 6, 4), 2, 1)
    y, size = merge(y, size, second)
    source = follow(follow(None, first), second)
    for i in range(2):
        for place in range(4):
            members = x[i, source[i] == place]
            torch.testing.assert_close(y[i, place], members.mean(0))
            assert int(size[i, place, 0]) == len(members)


def test_gradients_flow_through_tokens_alone() -> None:
    matching = match(torch.randn(2, 9, 4), 3, 1)
    x = torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 4, (2, 9, 1)).double()
    assert torch.autograd.gradcheck(lambda t: merge(t, size, matching)[0], (x,))


def test_a_token_of_size_s_attracts_the_attention_of_s_tokens() -> None:
    attn = student(toy()).model.blocks[0].attn.eval()
    x = torch.randn(2, 4, 48)
    size = torch.tensor([1.0, 3.0, 1.0, 2.0])
    repeated = x[:, [0, 1, 1, 1, 2, 3, 3]]
    biased, _ = attend(attn, x, State(x, 1, size=size.view(1, 4, 1).expand(2, -1, -1)))
    torch.testing.assert_close(biased, attn(repeated)[:, [0, 1, 4, 5]])


def twins(x: Tensor, network: Any) -> Tensor:
    """An image of one colour for a network without positions: all patches are equal, so merging loses nothing."""
    torch.nn.init.zeros_(network.model.pos_embed)
    return x.mean(dim=(2, 3), keepdim=True).expand_as(x).contiguous()


@pytest.mark.parametrize("variant", ["plain", "average_pool", "registers", "distilled", "layer_scale", "qk_norm"])
def test_merging_equal_tokens_changes_nothing_with_proportional_attention(variant: str) -> None:
    logits = {}
    for name, options in (("plain", {"r": 0}), ("merged", {"r": 13}), ("biasless", {"r": 13, "prop_attn": False})):
        network = student(toy(variant), strategy("token_merging", options)).eval()
        with torch.no_grad():
            logits[name] = network(twins(images(), network)).logits
    torch.testing.assert_close(logits["merged"], logits["plain"], atol=1e-5, rtol=1e-5)
    if variant != "average_pool":  # without a class token, attention over equal tokens needs no bias
        assert (logits["biasless"] - logits["plain"]).abs().max() > 1e-3


def test_ramp_is_the_papers() -> None:
    assert ramp(13, 0, 12) == [13] * 12
    assert ramp(8, -1, 12) == [int(16 - 16 / 11 * i + 1e-9) for i in range(12)]
    assert ramp(8, 1, 5) == [0, 4, 8, 12, 16]
    assert ramp(10, 0.5, 3) == [5, 10, 15]
    assert ramp(3, -0.4, 1) == [4]
    assert all(sum(ramp(r, i / 10, 12)) <= 12 * r + 12 for r in range(20) for i in range(-10, 11))


def tokens_after(options: dict[str, Any]) -> list[int]:
    with torch.no_grad():
        return student(toy(), strategy("token_merging", options)).eval()(images(2)).num_tokens


def test_schedules_remove_what_they_say() -> None:
    assert tokens_after({"r": 8}) == [57, 49, 41, 33]
    assert tokens_after({"r": [0, 12, 0, 4]}) == [65, 53, 53, 49]
    assert tokens_after({"r": 6, "blocks": [1, 3]}) == [65, 59, 59, 53]
    assert tokens_after({"r": 6, "inflect": -1.0}) == [53, 45, 41, 41]
    assert tokens_after({"r": 1000}) == [33, 17, 9, 5]


@pytest.mark.parametrize(
    ("options", "option", "allowed"),
    [
        ({"r": [1, 2]}, "r", "a list of 4"),
        ({"blocks": [0, 4]}, "blocks", "from 0 to 3"),
        ({"blocks": [1, 1]}, "blocks", "different blocks"),
        ({"r": [1, 1, 1, 1], "inflect": 0.5}, "inflect", "0 with a list"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], option: str, allowed: str) -> None:
    with pytest.raises(OptionError, match=allowed) as caught:
        strategy("token_merging", options).claims(facts_for(toy()))
    assert caught.value.option == option


def test_features_stand_on_the_full_grid() -> None:
    merging = strategy("token_merging", {"r": 20})
    network = student(toy(), merging, strategy("feature", {"pairs": [[0, 0], [3, 3]]})).train()
    out = network(images(2))
    assert out.num_tokens == [45, 25, 13, 7]
    assert out.features[3].shape == (2, 65, 48)
    for i in range(2):
        assert len(out.features[3][i].unique(dim=0)) == 7


@pytest.mark.parametrize("r", [0, 8, 13, 16])
@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_counted_macs_equal_the_closed_form(model: str, r: int) -> None:
    spec = ModelSpec(model=model)
    facts = facts_of(spec)
    network = compose(build_model(spec, device="meta"), [strategy("token_merging", {"r": r})], Facts(facts)).eval()
    N, D, E = 197, facts.embed_dim, facts.head_dim
    total = 196 * D * 768 + D * 1000
    for _ in range(12):
        total += 4 * N * D * D + 2 * N * N * D
        removed = min(r, (N - 1) // 2)
        patches = N - 1
        total += (patches // 2) * (patches - patches // 2) * E if removed else 0  # similarities of A and B
        N -= removed
        total += 8 * N * D * D
    assert static_macs(network, (3, 224, 224)) == total


def test_compiled_equals_eager() -> None:
    network = student(toy(), strategy("token_merging", {"r": 8})).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()).logits, network(images()).logits, atol=1e-5, rtol=1e-5)


def test_exports() -> None:
    class Logits(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).logits

    network = student(toy(), strategy("token_merging", {"r": 8})).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Logits(network), (images(4),), dynamic_shapes={"x": {0: batch}})
    for num in (2, 7):
        with torch.no_grad():
            expected = network(images(num)).logits
            torch.testing.assert_close(program.module()(images(num)), expected, atol=1e-5, rtol=1e-5)


def test_tokens_kept_is_reported() -> None:
    merging = strategy("token_merging", {"r": 8})
    with torch.no_grad():
        assert merging.measure(student(toy(), merging).eval()(images(2))) == {"tokens_kept": 33.0}


def test_random_options_never_lose_prefix_tokens() -> None:
    rng = random.Random(0)
    for variant in ("registers", "distilled"):
        r = [rng.randrange(40) for _ in range(4)]
        plain = student(toy(variant)).eval()
        network = student(toy(variant), strategy("token_merging", {"r": r})).eval()
        state_before, state_after = [], []
        plain.model.norm.register_forward_pre_hook(lambda _, args, s=state_before: s.append(args[0]))
        network.model.norm.register_forward_pre_hook(lambda _, args, s=state_after: s.append(args[0]))
        with torch.no_grad():
            plain(images(2)), network(images(2))
        P = plain.model.num_prefix_tokens
        # Merging moves prefix tokens only a little, through attention; a misplaced one would be another token.
        distance = torch.cdist(state_after[0][:, :P], state_before[0][:, :P])
        assert torch.equal(distance.argmin(-1), torch.arange(P).expand(2, -1))
