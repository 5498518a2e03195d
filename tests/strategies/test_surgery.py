from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from specs.model import ModelSpec
from strategies.compose import build_model
from strategies.shapes import BlockShape, Shapes
from strategies.surgery import (
    EMBED,
    Axis,
    Cut,
    apply,
    attention_rows,
    head_channels,
    narrow_linear,
    not_known,
    sizes_of,
    vit_axes,
)
from tests.strategies.toys import VARIANTS, images, toy

E = 16


def random_model(spec: ModelSpec) -> nn.Module:
    """Every parameter is random, biases too, so that nothing is zero by luck."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture(params=[{}, {"qkv_bias": False}, {"qk_norm": True, "init_values": 0.5}])
def model(request) -> nn.Module:
    return random_model(toy(**request.param))


def cut_heads(model: nn.Module, block: int, heads: list[int]) -> dict[Axis, torch.Tensor]:
    channels = head_channels(torch.tensor(heads), E)
    return {Axis("heads", block): channels, Axis("qkv", block): attention_rows(channels, channels, 48)}


def test_cut_heads_channels_and_blocks_equal_silenced_ones(model):
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced.blocks[1].attn.proj.weight[:, E : 2 * E] = 0  # the middle head of three
        silenced.blocks[2].mlp.fc2.weight[:, [0, 5, 191]] = 0
        for layer in (silenced.blocks[0].attn.proj, silenced.blocks[0].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    keep = cut_heads(model, 1, [0, 2])
    keep[Axis("mlp", 2)] = torch.tensor([c for c in range(192) if c not in (0, 5, 191)])
    apply(model, vit_axes(model), Cut(Shapes(), keep, (1, 2, 3)))
    torch.testing.assert_close(model(images()), silenced(images()), rtol=1e-4, atol=1e-4)
    assert model.blocks[0].attn.qkv.weight.shape == (3 * 2 * E, 48)
    assert model.blocks[0].attn.num_heads == 2
    assert model.blocks[1].mlp.fc1.weight.shape == (189, 48)
    assert len(model.blocks) == 3


@pytest.mark.parametrize("fused", [True, False])
def test_narrower_heads_equal_silenced_channels(fused):
    model = random_model(toy())
    for block in model.blocks:
        block.attn.fused_attn = fused
    silenced = copy.deepcopy(model)
    qk = torch.tensor([0, 3, 4, 15, 16, 17, 30, 31, 33, 35, 40, 47])  # four of each head
    v = torch.tensor([1, 2, 3, 4, 18, 19, 20, 21, 32, 40, 41, 42])
    with torch.no_grad():
        gone = torch.ones(48, dtype=torch.bool).index_fill(0, qk, False)
        silenced.blocks[1].attn.qkv.weight[:48][gone] = 0
        silenced.blocks[1].attn.qkv.bias[:48][gone] = 0
        silenced.blocks[1].attn.proj.weight[:, torch.ones(48, dtype=torch.bool).index_fill(0, v, False)] = 0
    keep = {Axis("heads", 1): v, Axis("qkv", 1): attention_rows(qk, v, 48)}
    apply(model, vit_axes(model), Cut(Shapes(), keep, head_dim=(16, 4)))
    assert (model.blocks[1].attn.head_dim, model.blocks[1].attn.num_heads) == (4, 3)
    torch.testing.assert_close(model(images()), silenced(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_narrower_tokens_are_the_network_written_out(variant):
    """The cut network computes what timm's own network of that width does with the kept rows and columns."""
    model = random_model(toy(variant, drop_path_rate=0.1))
    assert not_known(model) == []
    axes, index = vit_axes(model), torch.tensor([i for i in range(48) if i % 4])
    cut = Cut(Shapes(embed_dim=36), {EMBED: index})
    state = {name: cut.tensor(tensor, axes.get(name, {})) for name, tensor in model.state_dict().items()}
    apply(model, axes, cut)
    assert model.embed_dim == 36
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert 48 not in tensor.shape or "attn" in name
    reference = build_model(toy(variant), Shapes(embed_dim=36)).eval()
    reference.load_state_dict(state)
    assert torch.equal(reference(images()), model(images()))


def test_building_at_shapes_takes_pruned_weights():
    shapes = Shapes({0: BlockShape(1, 192), 1: BlockShape(3, 64)}, embed_dim=40, head_dim=8, removed=(1, 2))
    model = build_model(toy(), shapes)
    assert model.blocks[0].attn.qkv.weight.shape == (3 * 8, 40)
    assert model.blocks[1].attn.qkv.weight.shape == (3 * 3 * 8, 40)
    assert (model.blocks[1].mlp.fc1.in_features, model.blocks[1].mlp.fc1.out_features) == (40, 64)
    assert len(model.blocks) == 2
    assert model(images()).shape == (6, 10)
    assert sizes_of(model, vit_axes(model))[EMBED] == 40


def test_cutting_draws_no_random_numbers_and_keeps_dtype_and_gradient():
    layer = nn.Linear(6, 4, dtype=torch.float64)
    cut = narrow_linear(layer, rows=torch.tensor([3, 1]), columns=torch.tensor([0, 5]))
    assert torch.equal(cut.weight, layer.weight[[3, 1]][:, [0, 5]])
    assert torch.equal(cut.bias, layer.bias[[3, 1]])
    assert cut.weight.dtype == torch.float64
    assert cut.weight.requires_grad

    model = build_model(toy()).double()
    model.cls_token.requires_grad_(False)
    before = torch.get_rng_state()
    apply(model, vit_axes(model), Cut(Shapes(embed_dim=8), {EMBED: torch.arange(8)}))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.cls_token.dtype == torch.float64
    assert not model.cls_token.requires_grad
    assert model.pos_embed.requires_grad
