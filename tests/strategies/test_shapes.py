from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from specs.model import ModelSpec
from strategies.compose import build_model
from strategies.shapes import keep_channels, keep_heads, narrow_linear, reshape


@pytest.fixture(
    params=[
        {},
        {"qkv_bias": False},
        {"qk_norm": True, "init_values": 0.5},
        {"class_token": False, "global_pool": "avg"},
    ]
)
def model(request, toy_vit: ModelSpec) -> nn.Module:
    """Every parameter is random, biases too, so that nothing is zero by luck."""
    torch.manual_seed(0)
    network = build_model(ModelSpec(model=toy_vit.model, args={**toy_vit.args, **request.param})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_cut_heads_and_channels_equal_silenced_ones(model: nn.Module) -> None:
    silenced = copy.deepcopy(model)
    E = model.blocks[0].attn.head_dim
    with torch.no_grad():
        silenced.blocks[1].attn.proj.weight[:, E : 2 * E] = 0  # the middle head of three
        silenced.blocks[2].mlp.fc2.weight[:, [0, 5, 191]] = 0
    keep_heads(model.blocks[1].attn, torch.tensor([0, 2]))
    keep_channels(model.blocks[2].mlp, torch.tensor([c for c in range(192) if c not in (0, 5, 191)]))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), silenced(images), rtol=1e-5, atol=1e-5)
    assert model.blocks[1].attn.qkv.weight.shape == (3 * 2 * E, 48)
    assert model.blocks[2].mlp.fc1.weight.shape == (189, 48)


def test_a_reshaped_network_takes_pruned_weights(model: nn.Module) -> None:
    pruned = copy.deepcopy(model)
    keep_heads(pruned.blocks[0].attn, torch.tensor([2]))
    keep_channels(pruned.blocks[3].mlp, torch.arange(100, 164))
    reshape(model, {0: (1, 192), 3: (3, 64)})
    model.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), pruned(images))


def test_reshaping_to_the_shape_that_is_there_changes_nothing(model: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    reshape(model, dict.fromkeys(range(4), (3, 192)))
    assert torch.equal(model(images), before)


def test_cutting_draws_no_random_numbers_and_keeps_dtype_and_gradient() -> None:
    layer = nn.Linear(6, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    cut = narrow_linear(layer, rows=torch.tensor([3, 1]), columns=torch.tensor([0, 5]))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(cut.weight, layer.weight[[3, 1]][:, [0, 5]])
    assert torch.equal(cut.bias, layer.bias[[3, 1]])
    assert cut.weight.dtype == torch.float64
    assert cut.weight.requires_grad
