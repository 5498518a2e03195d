from __future__ import annotations

import pytest
import torch

from strategies.api import OptionError
from strategies.component.fourier_filter import Filter, fourier_filter, resampled
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
from tests.strategies.toys import facts_for, images, strategy, student, toy


@pytest.mark.parametrize(("h", "w"), [(4, 4), (5, 5), (3, 4), (4, 7)])
def test_a_filter_is_a_circular_convolution(h: int, w: int) -> None:
    """A product of spectra is a convolution of pictures that wrap around: both sides by hand, in double loops."""
    x, kernel = torch.randn(2, 3, h, w), torch.randn(3, h, w)
    expected = torch.zeros_like(x)
    for row in range(h):
        for column in range(w):
            for i in range(h):
                for j in range(w):
                    expected[..., row, column] += kernel[:, i, j] * x[..., (row - i) % h, (column - j) % w]
    weight = torch.view_as_real(torch.fft.rfft2(kernel))
    torch.testing.assert_close(fourier_filter(x, weight), expected, atol=1e-5, rtol=1e-5)


def test_the_filter_learns_like_the_convolution() -> None:
    """The gradient for K, against the change of the result when K changes."""
    weight = torch.randn(2, 4, 3, 2, requires_grad=True)
    x, aim = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    (fourier_filter(x, weight) * aim).sum().backward()
    change = torch.zeros_like(weight)
    change[1, 2, 1, 0] = 1  # the result is linear in K
    torch.testing.assert_close(weight.grad[1, 2, 1, 0], (fourier_filter(x, change) * aim).sum())


def test_only_patches_are_filtered() -> None:
    layer = Filter(4, 5)
    x = torch.randn(2, 19, 5)
    y = layer(None, x, State(x, 3))
    assert torch.equal(y[:, :3], torch.zeros(2, 3, 5))
    picture = x[:, 3:].view(2, 4, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(y[:, 3:].view(2, 4, 4, 5).permute(0, 3, 1, 2), fourier_filter(picture, layer.weight))


def test_a_smooth_filter_resamples_to_itself() -> None:
    flat = torch.ones(2, 8, 5, 2)
    assert resampled(flat, 8, 8) is flat
    torch.testing.assert_close(resampled(flat, 5, 7), torch.ones(2, 5, 4, 2))
    larger = torch.randn(1, 26, 5)
    assert Filter(4, 5)(None, larger, State(larger, 1)).shape == larger.shape


def test_attention_leaves_the_network_and_its_norm_stays() -> None:
    plain, network = student(toy()), student(toy(), strategy("global_filter", {"blocks": [1]}))
    gone = {k for k in plain.network_state() if k.startswith("blocks.1.attn.")}
    assert plain.network_state().keys() - network.network_state().keys() == gone
    assert "blocks.1.norm1.weight" in network.network_state()


@pytest.mark.parametrize("variant", ["distilled", "registers", "average_pool", "layer_scale"])
def test_it_runs_on_every_kind_of_network(variant: str) -> None:
    assert_images_do_not_mix(student(toy(variant), strategy("global_filter", {"blocks": [0, 2]})))


def test_a_class_token_needs_one_block_of_attention() -> None:
    every = strategy("global_filter", {"blocks": [0, 1, 2, 3]})
    with pytest.raises(OptionError, match="global_pool: avg"):
        every.claims(facts_for(toy()))
    with torch.no_grad():
        assert student(toy("average_pool"), every).eval()(images(2)).logits.isfinite().all()
    with pytest.raises(OptionError, match="0 to 3"):
        strategy("global_filter", {"blocks": [4]}).claims(facts_for(toy()))


@pytest.mark.parametrize("model", DEIT)
def test_counted_macs_are_those_of_the_mlps_that_are_left(model: str) -> None:
    network, D = deit_with(model, "global_filter", {})
    assert counted_macs(network) == outside_blocks(D) + 6 * plain_block(D) + 6 * 8 * 197 * D**2


def test_exports() -> None:
    assert_exports(student(toy(), strategy("global_filter", {})))
