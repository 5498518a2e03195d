from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator.measurement.compute import counts_of_images, static_macs
from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.backbone import Student
from strategies.dynamic.policies import Decisions, masked_update, packed_attention
from strategies.state import State
from tests.strategies.checks import DEIT, assert_images_do_not_mix, deit_with, outside_blocks, plain_block
from tests.strategies.toys import VARIANTS, facts_for, images, strategy, student, toy

NAME = "adaptive_computation"
ACTING = {"threshold": 0.953}
"""Just above where policies start, so that random weights decide both ways."""


def drawn(R: int, N: int, H: int, P: int = 1, seed: int = 0) -> Decisions:
    g = torch.Generator().manual_seed(seed)
    heads, layers = (torch.rand(R, n, generator=g) < 0.6 for n in (H, 2))
    tokens = torch.rand(R, N, generator=g) < 0.5
    tokens[:, :P] = True
    return Decisions(heads.float(), layers.float(), tokens.float())


@pytest.mark.parametrize("variant", ["plain", "qk_norm", "layer_scale"])
def test_a_half_computes_what_its_definition_says(variant: str) -> None:
    """Image by image, head by head, on the used patches alone."""
    block = student(toy(variant)).model.blocks[1].eval()
    x, chosen = torch.randn(5, 9, 48), drawn(5, 9, 3)
    chosen.layers[0, 0], chosen.layers[1, 0], chosen.heads[1] = 0.0, 1.0, 0.0
    attn = block.attn
    expected = x.clone()
    with torch.no_grad():
        for i in range(5):
            if not chosen.layers[i, 0]:
                continue
            there = [t for t in range(9) if chosen.tokens[i, t]]
            normed = block.norm1(x[i, there])
            q, k, v = attn.qkv(normed).reshape(len(there), 3, 3, 16).unbind(1)
            outputs = torch.zeros(len(there), 3, 16)
            for h in range(3):
                if chosen.heads[i, h]:
                    scores = attn.q_norm(q[:, h]) @ attn.k_norm(k[:, h]).T / 4
                    outputs[:, h] = scores.softmax(-1) @ v[:, h]
            expected[i, there] = x[i, there] + block.ls1(attn.proj(outputs.flatten(1)))
        torch.testing.assert_close(x + masked_update(block, State(x, 1), chosen, None), expected, atol=1e-5, rtol=1e-5)
        found = packed_attention(block, State(x.clone(), 1), chosen, None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_stand_for_several_attract_as_much_when_packed() -> None:
    block = student(toy()).model.blocks[1].eval()
    state = State(torch.randn(4, 9, 48), 1, size=torch.randint(1, 4, (4, 9, 1)).float())
    chosen = drawn(4, 9, 3, seed=1)
    with torch.no_grad():
        expected = state.x + masked_update(block, state, chosen, None)
        found = packed_attention(block, replace(state, x=state.x.clone()), chosen, None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_nothing_used_changes_nothing() -> None:
    block = student(toy()).model.blocks[1].eval()
    state, chosen = State(torch.randn(2, 9, 48), 1), drawn(2, 9, 3)
    none = chosen._replace(layers=torch.zeros(2, 2))
    with torch.no_grad():
        assert torch.equal(packed_attention(block, state, none, None), state.x)


def test_the_mask_has_gradients_for_every_decision() -> None:
    block = student(toy()).model.blocks[1].double().eval()
    x = torch.randn(2, 5, 48, dtype=torch.float64)

    def weighted(heads: torch.Tensor, layers: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return masked_update(block, State(x, 1), Decisions(heads, layers, tokens), None).sum(-1)

    given = [torch.rand(*shape, dtype=torch.float64).add(0.1).requires_grad_() for shape in ((2, 3), (2, 2), (2, 5))]
    weighted(*given).sum().backward()
    for tensor in given:
        assert tensor.grad is not None
    assert all(float(g.grad.abs().sum()) > 0 for g in given)
    assert float(given[1].grad[:, 1].abs().sum()) == 0  # the MLP's half comes later


def both_ways(network: Student) -> list[set[float]]:
    """Which values decisions on heads, layers and patches take over all blocks, on the toy images."""
    taken: list[set[float]] = [set(), set(), set()]
    for seam in network.first_half.values():
        forward = seam.policies.forward

        def noting(*args: Any, forward: Any = forward) -> Decisions:
            decisions = forward(*args)
            for values, tensor in zip(taken, decisions, strict=True):
                values |= set(tensor.flatten().tolist())
            return decisions

        seam.policies.forward = noting
    with torch.no_grad():
        network(images())
    return taken


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "average_pool"])
@pytest.mark.parametrize("others", [[], [("token_merging", {"r": 8, "blocks": [0]})], [("rotary_position", {})]])
def test_packing_equals_masking(variant: str, others: list[Any]) -> None:
    chosen = [strategy(NAME, ACTING), *(strategy(name, options) for name, options in others)]
    packs, masks = (student(toy(variant), *chosen).eval() for _ in range(2))
    masks.always_tap, masks.taps = True, frozenset({0, 1, 2, 3})
    for policies in packs.extras[NAME].values():
        for policy in policies.children():
            torch.nn.init.normal_(policy.weight, std=0.3)  # so that images decide differently
    masks.load_network_state(packs.network_state())
    with torch.no_grad():
        fewer, all_there = packs(images()), masks(images())
    torch.testing.assert_close(fewer.logits, all_there.logits, atol=1e-5, rtol=1e-5)
    assert both_ways(packs) == [{0.0, 1.0}] * 3
    with torch.no_grad():
        again = masks(images())
    assert all(torch.equal(all_there.features[b], again.features[b]) for b in range(4))


def test_usage_losses_equal_their_definitions() -> None:
    acting = strategy(NAME, {"heads": 0.4, "layers": 0.7, "tokens": 0.2})
    network = student(toy(), acting).train()
    made: list[Decisions] = []
    for seam in network.first_half.values():
        forward = seam.policies.forward
        seam.policies.forward = lambda *args, forward=forward: made.append(forward(*args)) or made[-1]
    terms = acting.losses(network(images()), None, torch.zeros(6).long())
    heads, layers, tokens = (torch.stack([d[i].detach() for d in made]) for i in range(3))
    assert heads.shape == (3, 6, 3)
    assert terms["heads"].item() == pytest.approx(abs(heads.mean().item() - 0.4), rel=1e-4)
    assert terms["layers"].item() == pytest.approx(abs(layers.mean().item() - 0.7), rel=1e-4)
    assert terms["tokens"].item() == pytest.approx((tokens[..., 1:].mean().item() - 0.2) ** 2, rel=1e-4)
    assert acting.weights() == {"heads": 2.0, "layers": 2.0, "tokens": 2.0}
    sum(terms.values()).backward()
    for policies in network.extras[NAME].values():
        assert all(float(policy.bias.grad.abs().sum()) > 0 for policy in policies.children())


@pytest.mark.parametrize("left_out", [None, "layers"])
def test_shares_used_in_evaluation_are_reported(left_out: str | None) -> None:
    acting = strategy(NAME, ACTING | ({left_out: None} if left_out else {}))
    network = student(toy(), acting).eval()
    for policies in network.extras[NAME].values():
        for policy in policies.children():
            torch.nn.init.normal_(policy.weight, std=0.3)
    made: list[Decisions] = []
    for seam in network.first_half.values():
        forward = seam.policies.forward
        seam.policies.forward = lambda *args, forward=forward: made.append(forward(*args)) or made[-1]
    with torch.no_grad():
        found = acting.measure(network(images()))
    expected = {
        name: torch.stack([d[i][:, skipped:] for d in made]).mean().item()
        for i, (name, skipped) in enumerate((("heads", 0), ("layers", 0), ("tokens", 1)))
        if name != left_out
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(0 < share < 1 for share in found.values())


def test_everything_used_is_reported_so_and_early_leavers_are_not_guessed_at() -> None:
    acting = strategy(NAME, {"threshold": 0.0, "layers": None})
    with torch.no_grad():
        assert acting.measure(student(toy(), acting).eval()(images())) == {"heads": 1.0, "tokens": 1.0}
    acting = strategy(NAME, ACTING)
    network = student(toy(), acting, strategy("early_exit", {"blocks": [0, 2], "threshold": 0.12})).eval()
    with torch.no_grad():
        assert acting.measure(network(images())) == {}


def test_images_do_not_mix() -> None:
    assert_images_do_not_mix(student(toy(), strategy(NAME, ACTING)))


@pytest.mark.parametrize("model", DEIT)
def test_macs_are_those_of_what_is_used(model: str) -> None:
    network, D = deit_with(model, NAME, {})
    assert static_macs(network, (3, 224, 224)) is None
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    N, E, expected = 197, 64, outside_blocks(D) + plain_block(D)
    H = D // E
    for block, policies in network.extras[NAME].items():
        used, attends, computes = 1 + int(block) % H, int(block) % 3 > 0, int(block) % 2 > 0
        with torch.no_grad():
            policies.heads.bias.copy_((torch.arange(H) < used).float() - 0.5)
            policies.layers.bias.copy_(torch.tensor([attends, computes]).float() - 0.5)
            policies.tokens.bias.fill_(1.0)
        expected += D * H + 2 * D + 196 * D
        if attends:
            expected += 3 * N * D * used * E + 2 * N * N * used * E + N * D * D
        if computes:
            expected += 8 * N * D * D
    assert counts_of_images(network, torch.zeros(1, 3, 224, 224))[0].macs == expected


@pytest.mark.parametrize(("options", "problem"), [({"start": 4}, "no block 4")])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        strategy(NAME, options).claims(facts_for(toy()))


def test_something_is_decided() -> None:
    with pytest.raises(ValueError, match="nothing is decided"):
        strategy(NAME, {"heads": None, "layers": None, "tokens": None})


def test_a_network_without_class_token_is_refused() -> None:
    from strategies.claims import conflicts

    spec = ModelSpec(model=toy().model, args={**toy().args, "global_pool": "avg", "class_token": False})
    (reason,) = conflicts([strategy(NAME, {})], facts_for(spec))
    assert "class token" in reason
