"""Early knowledge: which blocks, the aligner and the distance by hand, and teachers of other families."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.facts import Facts
from tests.strategies.toys import images, strategy, toy

RESNET = ModelSpec(model="resnet10t", args={"num_classes": 10})
LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def test_the_first_half_learns_from_the_first_half() -> None:
    vit, cnn = facts_of(ModelSpec(model="deit_small_patch16_224")), facts_of(RESNET)
    acting = strategy("early_knowledge", {})
    assert acting.pairs(Facts(vit, replace(cnn, depth=5))) == ((2, 0), (5, 1))
    assert acting.pairs(Facts(vit, replace(cnn, depth=8))) == ((1, 0), (2, 1), (3, 2), (5, 3))
    assert acting.pairs(Facts(vit, replace(cnn, depth=1))) == ((5, 0),)


def test_the_term_is_the_mean_squared_error_behind_the_aligner() -> None:
    acting = strategy("early_knowledge", {"pairs": [[0, 1], [1, 2]]})
    facts = Facts(facts_of(toy()), facts_of(RESNET))
    torch.manual_seed(0)
    network = compose(build_model(toy()), [acting], facts).train()
    guide = teacher_of(student_of(build_model(RESNET)), [acting], facts)
    with torch.no_grad():
        out, taught = network(images()), guide(images())
        term = float(acting.losses(out, taught, LABELS)["early"])
        expected = 0.0
        for block, stage in ((0, 1), (1, 2)):
            depthwise, _, pointwise = network.extras["early_knowledge"].pairs[f"{block}-{stage}"]
            patches = out.features[block][:, 1:].transpose(1, 2).reshape(6, 48, 8, 8)
            # Depth-wise: every channel by a kernel of its own, written out.
            padded = F.pad(patches, (1, 1, 1, 1))
            local = torch.zeros_like(patches)
            for i in range(3):
                for j in range(3):
                    local += padded[:, :, i : i + 8, j : j + 8] * depthwise.weight[None, :, 0, i, j, None, None]
            local = (local + depthwise.bias[None, :, None, None]).clamp(min=0)
            aligned = torch.einsum("bdhw,cd->bchw", local, pointwise.weight[:, :, 0, 0])
            aligned = aligned + pointwise.bias[None, :, None, None]
            aim = F.interpolate(taught.features[stage], size=(8, 8), mode="bilinear", align_corners=False)
            expected += float(((aligned - aim) ** 2).mean()) / 2
    assert term == pytest.approx(expected, rel=1e-4)


def test_bad_options() -> None:
    facts = Facts(facts_of(toy()), facts_of(RESNET))
    (reason,) = conflicts([strategy("early_knowledge", {"pairs": [[0, 9]]})], facts)
    assert "`resnet10t`" in reason
    assert "Way out" in reason
    assert "no teacher" in conflicts([strategy("early_knowledge", {})], Facts(facts_of(toy())))[0]
    with pytest.raises(ValidationError, match="twice"):
        strategy("early_knowledge", {"pairs": [[0, 0], [0, 0]]})
