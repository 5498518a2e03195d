from __future__ import annotations

import cmath
from dataclasses import replace
from typing import Any

import pytest
import torch

from specs.model import ModelSpec
from strategies import ragged
from strategies.api import OptionError
from strategies.attention import Look, attend
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.component.rotation import Axial, Mixed, Places, frequencies, start_of_mixed
from strategies.facts import Facts
from strategies.state import State
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
    plain_block,
)
from tests.strategies.toys import facts_for, strategy, student, toy


def turned_by_hand(x: torch.Tensor, position: torch.Tensor, seam: Any, kind: str) -> torch.Tensor:
    """Pairs of channels as complex numbers, multiplied by e^(i·angle), one by one."""
    R, H, N, E = x.shape
    y = torch.empty_like(x)
    for r in range(R):
        for h in range(H):
            for n in range(N):
                row, column = position[r, n].tolist()
                for t in range(E // 2):
                    if kind == "axial":
                        theta = 100 ** (-(t // 2) / (E / 4))
                        angle = theta * (column if t % 2 == 0 else row)
                    else:
                        angle = row * seam.frequency[0, h, t].item() + column * seam.frequency[1, h, t].item()
                    z = complex(*x[r, h, n, [t, t + E // 2]].tolist()) * cmath.exp(1j * angle)
                    y[r, h, n, [t, t + E // 2]] = torch.tensor([z.real, z.imag])
    return y


def seam_of(kind: str) -> Any:
    return Axial(8, 100.0) if kind == "axial" else Mixed(2, 8, 10.0)


@pytest.mark.parametrize("kind", ["axial", "mixed"])
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_turning_equals_the_papers_definition(kind: str, num_prefix: int) -> None:
    N = num_prefix + 9
    state = Places()(State(torch.randn(2, N, 16), num_prefix))
    assert state.position[0].tolist() == [[0.0, 0.0]] * num_prefix + [[r, c] for r in range(3) for c in range(3)]
    q, k, seam = torch.randn(2, 2, N, 8), torch.randn(2, 2, N, 8), seam_of(kind)
    for found, x in zip(seam(q, k, state), (q, k), strict=True):
        torch.testing.assert_close(found, turned_by_hand(x, state.position, seam, kind), atol=1e-5, rtol=1e-5)
        assert torch.equal(found[:, :, :num_prefix], x[:, :, :num_prefix])


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_places_that_differ_between_images(kind: str) -> None:
    position = 5 * torch.rand(2, 6, 2)
    state = State(torch.randn(2, 6, 16), 0, position=position)
    q, seam = torch.randn(2, 2, 6, 8), seam_of(kind)
    torch.testing.assert_close(seam(q, q, state)[0], turned_by_hand(q, position, seam, kind), atol=1e-5, rtol=1e-5)


def test_mixed_frequencies_start_at_right_angles() -> None:
    start = start_of_mixed(3, 16, 10.0)
    assert start.shape == (2, 3, 8)
    torch.testing.assert_close(start.norm(dim=0), frequencies(16, 10.0).repeat(2).expand(3, -1))
    first, second = start[:, :, :4], start[:, :, 4:]
    torch.testing.assert_close((first * second).sum(0), torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(frequencies(16, 100.0), torch.tensor([1.0, 100**-0.25, 0.1, 100**-0.75]))


def test_learned_frequencies_have_gradients_like_those_of_finite_differences() -> None:
    seam, state = Mixed(2, 8, 10.0), Places()(State(torch.randn(1, 9, 16), 0))
    q = torch.randn(1, 2, 9, 8)
    aim = torch.randn(1, 2, 9, 8)

    def value() -> torch.Tensor:
        return (seam(q, q, state)[0].double() * aim).sum()

    value().backward()
    gradient = seam.frequency.grad[1, 0, 2].double()
    with torch.no_grad():
        seam.frequency[1, 0, 2] += 1e-2
        above = value()
        seam.frequency[1, 0, 2] -= 2e-2
        torch.testing.assert_close(gradient, (above - value()) / 2e-2, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_scores_depend_on_distance_alone(kind: str) -> None:
    attn, seam, x = student(toy()).model.blocks[0].attn.eval(), seam_of(kind), torch.randn(1, 9, 48)
    seam = Axial(16, 100.0) if kind == "axial" else Mixed(3, 16, 10.0)
    state = Places()(State(x, 0))
    moved = replace(state, position=state.position + torch.tensor([2.0, -7.0]))
    stretched = replace(state, position=state.position * 2)
    y, same, other = (attend(attn, x, s, rotate=seam)[0] for s in (state, moved, stretched))
    torch.testing.assert_close(y, same, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(y, other, atol=1e-3)


def test_merged_tokens_stand_at_the_mean_of_their_places() -> None:
    x = torch.randn(1, 17, 6)
    state = Places()(State(x, 1))
    keys = torch.randn(1, 2, 17, 3)
    tokens = student(toy(), strategy("token_merging", {"r": [5, 0, 0, 4]})).tokens
    merged = tokens[0](state, Look(keys=keys), True)
    again = tokens[3](merged, Look(keys=torch.randn(1, 2, 12, 3)), True)
    for now in (merged, again):
        for token in range(now.x.shape[1]):
            members = now.source[0] == token
            torch.testing.assert_close(now.position[0, token], state.position[0, members].mean(0))


def test_packed_and_dropped_tokens_keep_their_places() -> None:
    attn, seam = student(toy()).model.blocks[0].attn.eval(), Mixed(3, 16, 10.0)
    state = Places()(State(torch.randn(2, 10, 48), 1))
    alive = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]]).bool()
    packed = ragged.pack(state, alive)
    y = attend(attn, packed.x, packed, rotate=seam)[0][0]
    parts = []
    for i in range(2):
        kept = state.select(torch.tensor([i])).gather(torch.nonzero(alive[i]).T)
        parts.append(attend(attn, kept.x, kept, rotate=seam)[0][0])
    torch.testing.assert_close(y, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "registers", "distilled", "average_pool", "qk_norm"])
@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_it_combines_with_merging_and_exits(kind: str, variant: str) -> None:
    chosen = [
        strategy("rotary_position", {"kind": kind}),
        strategy("token_merging", {"r": 9}),
        strategy("early_exit", {"blocks": [1], "threshold": 0.2}),
    ]
    assert not conflicts(chosen, facts_for(toy(variant)))
    network = student(toy(variant), *chosen)
    assert "pos_embed" not in network.network_state()
    assert_images_do_not_mix(network)


def test_pruned_heads_have_their_own_frequencies() -> None:
    for order in (1, -1):
        chosen = [strategy("structured_pruning", {"ratio": 0.5}), strategy("rotary_position", {})][::order]
        network = student(toy(), *chosen)
        for b, block in enumerate(network.model.blocks):
            assert network.extras["rotary_position"][str(b)].frequency.shape == (2, block.attn.num_heads, 8)
        assert_images_do_not_mix(network)


def test_odd_heads_are_refused() -> None:
    facts = Facts(facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"embed_dim": 54, "num_heads": 9})))
    with pytest.raises(OptionError, match="no multiple of 4"):
        strategy("rotary_position", {}).claims(facts)
    with pytest.raises(OptionError, match="0 to 3"):
        strategy("rotary_position", {"blocks": [4]}).claims(facts_for(toy()))


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_counted_macs_are_the_plain_networks(model: str, kind: str) -> None:
    network, D = deit_with(model, "rotary_position", {"kind": kind})
    assert counted_macs(network) == outside_blocks(D) + 12 * plain_block(D)


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_exports(kind: str) -> None:
    assert_exports(student(toy(), strategy("rotary_position", {"kind": kind}), strategy("token_merging", {"r": 8})))
