"""Networks outside of the loop, which lose channels inside of their blocks."""

from __future__ import annotations

import copy

import pytest
import torch

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.catalog_build import facts_from
from strategies.claims import conflicts
from strategies.component.structured_pruning import StructuredPruning, StructuredPruningConfig
from strategies.compose import build_model, compose, student_of
from strategies.facts import Facts
from strategies.inner_widths import inner_axes
from tests.strategies.toys import strategy

NETWORKS = {
    "resnet18": {},
    "resnet50": {},
    "pvt_v2_b0": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 2, 1]},
}


@pytest.mark.parametrize("scope", ["per_block", "isomorphic", "global"])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_lose_channels_inside_their_blocks(name, scope) -> None:
    spec = ModelSpec(model=name, args={"num_classes": 10, **NETWORKS[name]})
    torch.manual_seed(0)
    model = build_model(spec).eval()
    facts = Facts(facts_from(model, name))
    silenced = copy.deepcopy(model)
    pruning = StructuredPruning(StructuredPruningConfig(ratio=0.5, what=("mlp",), scope=scope))
    assert conflicts([pruning], facts) == []
    axes = inner_axes(model)
    found = pruning.cut(student_of(model), facts, 0, None)
    tensors = dict(silenced.named_parameters())
    with torch.no_grad():  # the layers that read the channels read zeros
        for tensor, dims in axes.items():
            if 1 in dims and dims[1] in found.keep:
                gone = torch.ones(tensors[tensor].shape[1], dtype=torch.bool)
                gone[found.keep[dims[1]]] = False
                tensors[tensor][:, gone] = 0
    before = sum(p.numel() for p in model.parameters())
    student = compose(model, [pruning], facts).eval()
    assert sum(p.numel() for p in model.parameters()) < 0.8 * before
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(student(x).logits, silenced(x), rtol=1e-3, atol=1e-4)
    rebuilt = compose(build_model(spec, student.shapes), [pruning], facts.further(student.shapes), restored=True).eval()
    rebuilt.load_network_state(student.network_state())
    assert torch.equal(rebuilt(x).logits, student(x).logits)


def test_what_other_networks_cannot_lose_is_refused_by_name() -> None:
    resnet = Facts(facts_of(ModelSpec(model="resnet18", args={"num_classes": 10})))
    assert "Write `what: [mlp]`" in conflicts([strategy("structured_pruning", {"ratio": 0.5})], resnet)[0]
    target = strategy("structured_pruning", {"target_macs": 1e9, "what": ["mlp"]})
    assert "Write `ratio` instead" in conflicts([target], resnet)[0]
    nothing = Facts(facts_of(ModelSpec(model="convnextv2_atto", args={"num_classes": 10})))
    reason = conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["mlp"]})], nothing)[0]
    assert "no channels inside its blocks" in reason
    normed = Facts(facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"qk_norm": True})))
    assert (
        "Write `heads`"
        in conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["head_width"]})], normed)[0]
    )
    pooled = Facts(facts_of(ModelSpec(model="vit_tiny_patch16_224", args={"global_pool": "map"})))
    assert (
        "Leave `embed` out" in conflicts([strategy("structured_pruning", {"ratio": 0.5, "what": ["embed"]})], pooled)[0]
    )
