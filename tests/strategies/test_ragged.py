from __future__ import annotations

import pytest
import torch

from strategies import ragged
from strategies.aside import rejoin, set_aside
from strategies.attention import attend
from strategies.state import State
from tests.strategies.toys import VARIANTS, images, student, toy


def alive_tokens(num_prefix_tokens: int, num_images: int = 5, num_tokens: int = 64, seed: int = 3) -> torch.Tensor:
    """Different tokens, and numbers of tokens, in every image; two images have equally many."""
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(num_images, num_tokens + num_prefix_tokens, generator=generator) < 0.5
    alive[:, :num_prefix_tokens] = True
    alive[1] = alive[0].roll(0)
    alive[1, num_prefix_tokens:] = alive[0, num_prefix_tokens:].flip(0)
    return alive


@pytest.mark.parametrize("biased", [False, True])
def test_attention_of_packed_tokens_is_that_of_each_image_alone(biased: bool) -> None:
    attn = student(toy()).model.blocks[0].attn.eval()
    x, alive = torch.randn(5, 65, 48), alive_tokens(1)
    size = torch.randint(1, 4, (5, 65, 1)).float() if biased else None
    packed = ragged.pack(State(x, 1, size=size), alive)
    y, _ = attend(attn, packed.x, packed)
    for i, part in enumerate(y[0].split(packed.lengths.tolist())):
        one = State(x[i : i + 1, alive[i]], 1, size=None if size is None else size[i : i + 1, alive[i]])
        torch.testing.assert_close(part, attend(attn, one.x, one)[0][0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_network_answers_like_each_image_alone(variant: str) -> None:
    network = student(toy(variant)).eval()
    x = images(5)
    with torch.no_grad():
        state = network.embed(x)
        alive = alive_tokens(state.num_prefix_tokens)
        packed = network.run(ragged.pack(state, alive))
        alone = [network.run(State(state.x[i : i + 1, alive[i]], state.num_prefix_tokens)).logits for i in range(5)]
    torch.testing.assert_close(packed.logits, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert packed.num_tokens == [pytest.approx(float(alive.sum()) / 5)] * 4


def test_packed_tokens_are_packed_again_and_images_taken_out() -> None:
    x, alive = torch.randn(5, 9, 4), alive_tokens(1, num_tokens=8)
    once = ragged.pack(State(x, 1, size=torch.rand(5, 9, 1)), alive)
    again = ragged.pack(once, torch.arange(once.x.shape[1]).remainder(3).ne(1).logical_or(prefix_of(once)).unsqueeze(0))
    left = again.select(torch.tensor([0, 3]))
    assert left.image.tolist() == [0, 3]
    expected = again.x[0].split(again.lengths.tolist())
    assert torch.equal(left.x[0], torch.cat([expected[0], expected[3]]))
    assert torch.equal(left.prefix(0), x[[0, 3], 0])
    means = torch.stack(
        [
            (part[1:] * s[1:]).sum(0) / s[1:].sum()
            for part, s in zip(expected, again.size[0].split(again.lengths.tolist()), strict=True)
        ]
    )
    torch.testing.assert_close(again.mean_patch(), means)


def prefix_of(state: State) -> torch.Tensor:
    mask = torch.zeros(state.x.shape[1], dtype=torch.bool)
    mask[state.starts()] = True
    return mask


def test_padding_puts_each_image_in_its_row() -> None:
    x, alive = torch.randn(3, 6, 4), torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1]]).bool()
    packed = ragged.pack(State(x, 1), alive)
    padded, real = ragged.pad(packed.x, packed.lengths)
    assert real.sum(1).tolist() == [3, 1, 5]
    for i in range(3):
        assert torch.equal(padded[i][real[i]], x[i][alive[i]])
        assert padded[i][~real[i]].abs().sum() == 0


def test_tokens_aside_come_back_to_their_places() -> None:
    x = torch.randn(2, 5, 3)
    size, position = torch.rand(2, 5, 1), torch.rand(2, 5, 2)
    going, waiting = torch.tensor([[0, 2], [0, 4]]), torch.tensor([[1, 3, 4], [1, 2, 3]])
    away = set_aside(State(x, 1, size=size, position=position), going, waiting)
    back = rejoin(away.with_x(away.x + 1))
    expected = x.clone()
    expected[0, [0, 2]] += 1
    expected[1, [0, 4]] += 1
    torch.testing.assert_close(back.x, expected)
    one = away.select(torch.tensor([1]))
    torch.testing.assert_close(rejoin(one).x, x[1:])
    assert torch.equal(back.size, size)
    assert torch.equal(back.position, position)


def test_what_belongs_to_the_whole_sequence_comes_back_with_it() -> None:
    x, source = torch.randn(3, 5, 3), torch.tensor([0, 1, 1, 2, 3, 4]).expand(3, -1)
    going, waiting = torch.tensor([[0, 2]] * 3), torch.tensor([[1, 3, 4]] * 3)
    state = State(x, 1, source=source).noting("some", torch.arange(3))
    away = set_aside(state, going, waiting)
    assert away.source is None
    torch.testing.assert_close(rejoin(away).full_grid(), state.full_grid())
    one = away.select(torch.tensor([2]))
    assert one.notes["some"].tolist() == [2]
    torch.testing.assert_close(rejoin(one).full_grid(), state.full_grid()[2:])


@pytest.mark.parametrize("until", [2, None])
def test_the_loop_puts_waiting_tokens_back(until: int | None) -> None:
    """As often as it runs on what goes on; features show every token in its place."""
    network = student(toy()).train()
    network.taps = frozenset(range(4))
    going = torch.cat([torch.zeros(3, 1).long(), torch.arange(2, 65, 2).expand(3, -1)], dim=1)
    waiting = torch.arange(1, 65, 2).expand(3, -1)
    network.entry[1] = lambda state: set_aside(state, going, waiting, until)
    out = network(images(3))
    assert out.num_tokens == [65, 33, 65, 65] if until else [65, 33, 33, 33]
    before = out.features[0]
    for block in range(1, 2 if until else 4):
        assert torch.equal(out.features[block][:, 1::2], before[:, 1::2])
        assert not torch.isclose(out.features[block][:, 0::2], before[:, 0::2]).all(-1).any()
