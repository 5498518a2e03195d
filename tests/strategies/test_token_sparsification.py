from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from specs.model import ModelSpec
from strategies.api import OptionError
from strategies.backbone import Student
from strategies.catalog import facts_of
from strategies.compose import build_model, compose, student_of, teacher_of
from strategies.dynamic.keep_predictor import KeepPredictor, token_difference
from strategies.dynamic.learned_selection import counts
from strategies.facts import Facts
from strategies.losses import total_loss
from tests.strategies.checks import (
    DEIT,
    assert_exports,
    assert_images_do_not_mix,
    counted_macs,
    deit_with,
    outside_blocks,
    plain_block,
)
from tests.strategies.toys import VARIANTS, facts_for, images, strategy, student, toy

ALONE = {"kl_weight": 0.0, "token_weight": 0.0}
NAME = "token_sparsification"


def masking(network: Student) -> Student:
    """The same network, made to hand out tokens in evaluation: then it masks instead of gathering."""
    network.always_tap, network.taps = True, frozenset({0})
    return network


def gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def linear(layer: torch.nn.Linear, v: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * x for w, x in zip(row, v, strict=True)) + b for row, b in rows]


def test_scores_equal_the_papers_definition() -> None:
    torch.manual_seed(0)
    predictor = KeepPredictor(8).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    x, keep = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1.0]])
    found = predictor(x, keep.double().unsqueeze(-1))
    norm, first = predictor.inward[0], predictor.inward[1]
    second, third, last = (predictor.outward[i] for i in (0, 2, 4))
    for i in range(2):
        z = []
        for token in x[i].tolist():
            mean = sum(token) / 8
            deviation = math.sqrt(sum((t - mean) ** 2 for t in token) / 8 + norm.eps)
            scaled = [
                (t - mean) / deviation * w + b
                for t, w, b in zip(token, norm.weight.tolist(), norm.bias.tolist(), strict=True)
            ]
            z.append([gelu(v) for v in linear(first, scaled)])
        there = [j for j in range(5) if keep[i, j]]
        common = [sum(z[j][d] for j in there) / len(there) for d in range(4, 8)]
        for j in range(5):
            hidden = [gelu(v) for v in linear(second, z[j][:4] + common)]
            yes, no = linear(last, [gelu(v) for v in linear(third, hidden)])
            expected = yes - math.log(math.exp(yes) + math.exp(no))
            assert found[i, j, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert found[i, j].exp().sum().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gathering_equals_masking(variant: str) -> None:
    acting = strategy(NAME, {"keep_rate": 0.5, **ALONE})
    gathers, masks = (student(toy(variant), acting).eval() for _ in range(2))
    with torch.no_grad():
        fewer, all_there = gathers(images()), masking(masks)(images())
    P = gathers.model.num_prefix_tokens
    assert fewer.num_tokens == [P + 64, P + 32, P + 16, P + 8]
    assert all_there.num_tokens == [P + 64] * 4
    assert all_there.features[0].shape[1] == P + 64
    torch.testing.assert_close(fewer.logits, all_there.logits, atol=1e-5, rtol=1e-5)


def test_the_best_go_on() -> None:
    acting = strategy(NAME, {"keep_rate": 0.3, "blocks": [1], **ALONE})
    network = student(toy(), acting).eval()
    seam = network.entry[1]
    with torch.no_grad():
        state = network.embed(images(3))
        after = seam(state)
        scores = seam.predictor(state.x[:, 1:], None)[..., 0]
    for i in range(3):
        best = sorted(sorted(range(64), key=lambda j: -scores[i, j].item())[:19])
        assert torch.equal(after.x[i], state.x[i, [0, *(1 + j for j in best)]])


def test_what_is_left_out_stays_out_and_changes_nothing() -> None:
    """In training too: patches without a share have no influence on the answer, and none on each other's."""
    acting = strategy(NAME, {"keep_rate": 0.5, "blocks": [0, 2], **ALONE})
    network = student(toy(), acting).train()
    torch.manual_seed(5)
    first = network.entry[0](network.embed(images(3)))
    second = network.entry[2](first)
    kept = [first.keep, second.keep]
    assert all(set(k.detach().unique().tolist()) <= {0.0, 1.0} for k in kept)
    assert bool((kept[1] <= kept[0]).all())
    assert 0 < float(kept[1][:, 1:].mean()) < float(kept[0][:, 1:].mean()) < 1
    assert bool((kept[1][:, 0] == 1).all())
    shares = second.notes[NAME]
    torch.testing.assert_close(shares, torch.stack([k[:, 1:].sum((1, 2)) for k in kept], dim=1))


def test_losses_equal_their_definitions() -> None:
    spec = toy()
    acting = strategy(NAME, {"keep_rate": 0.5, "blocks": [0, 2]})
    facts = Facts(facts_of(spec), facts_of(spec))
    torch.manual_seed(0)
    network = compose(build_model(spec), [acting], facts).train()
    guide = teacher_of(student_of(build_model(spec)), [acting], facts)
    target = torch.tensor([0, 3, 9, 2, 2, 7])
    with torch.no_grad():
        taught = guide(images())
    out = network(images())
    total, terms = total_loss([acting], out, taught, target)
    keep = out.readouts[NAME]["keep"][:, 1:, 0]
    assert keep.shape == (6, 64)
    share = keep.mean(1)
    # The second block's share is that of the mask at the end; the first's is noted only.
    assert set(terms) == {"task", f"{NAME}.ratio", f"{NAME}.kl", f"{NAME}.tokens"}
    p, q = taught.logits.softmax(-1), out.logits.softmax(-1)
    kl = sum((p[i] * (p[i] / q[i]).log()).sum() for i in range(6)) / 6
    torch.testing.assert_close(terms[f"{NAME}.kl"], kl.detach())
    squares = [
        float(((out.tokens[i, 1 + j] - taught.tokens[i, 1 + j]) ** 2).mean())
        for i in range(6)
        for j in range(64)
        if keep[i, j]
    ]
    assert terms[f"{NAME}.tokens"].item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert terms[f"{NAME}.ratio"].item() >= ((share - 0.25) ** 2).mean().item() / 2
    weighted = terms["task"] + 2 * terms[f"{NAME}.ratio"] + 0.5 * (terms[f"{NAME}.kl"] + terms[f"{NAME}.tokens"])
    torch.testing.assert_close(total.detach(), weighted)
    total.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_ratio_loss_is_the_mean_square_over_images_and_blocks() -> None:
    acting = strategy(NAME, {"keep_rate": 0.5, "blocks": [0, 2], **ALONE})
    network = student(toy(), acting).train()
    torch.manual_seed(6)
    states: list[Tensor] = []
    for block in (0, 2):
        seam = network.entry[block]
        network.entry[block] = lambda state, seam=seam: states.append(seam(state)) or states[-1]
    out = network(images())
    shares = [[float(s.keep[i, 1:].mean()) for i in range(6)] for s in states]
    expected = sum((a - 0.5) ** 2 + (b - 0.25) ** 2 for a, b in zip(*shares, strict=True)) / 12
    assert float(acting.losses(out, None, torch.zeros(6).long())["ratio"]) == pytest.approx(expected, rel=1e-4)


def test_no_gradient_flows_into_the_mask_from_the_token_loss() -> None:
    keep = torch.ones(1, 3, 1, requires_grad=True)
    x = torch.randn(1, 3, 2, requires_grad=True)
    token_difference(x, torch.zeros(1, 3, 2), keep).backward()
    assert keep.grad is None
    torch.testing.assert_close(x.grad, 2 * x.detach() / 6)


def test_patches_left_are_counted_from_the_whole_image() -> None:
    assert counts(0.7, 3, 196) == (137, 96, 67)
    assert counts(0.1, 2, 100) == (10, 1)


@pytest.mark.parametrize("keep_rate", [0.7, 0.5, 1.0])
@pytest.mark.parametrize("model", DEIT)
def test_counted_macs_equal_the_closed_form(model: str, keep_rate: float) -> None:
    network, D = deit_with(model, NAME, {"keep_rate": keep_rate, **ALONE})
    total, n = outside_blocks(D), 196
    for block in range(12):
        if block in (3, 6, 9) and keep_rate < 1:
            total += n * (D * D + D * D // 2 + D * D // 8 + D // 2)
            n = math.floor(196 * keep_rate ** (block // 3) + 1e-9)
        total += plain_block(D, n + 1)
    assert counted_macs(network) == total


def test_it_exports_and_images_do_not_mix() -> None:
    assert_exports(student(toy(), strategy(NAME, ALONE)))
    assert_images_do_not_mix(student(toy(), strategy(NAME, ALONE)))


def test_the_knob_changes_no_weights() -> None:
    trained = student(toy(), strategy(NAME, {"keep_rate": 0.5, **ALONE}))
    for rate in (0.3, 1.0):
        student(toy(), strategy(NAME, {"keep_rate": rate, **ALONE})).load_network_state(trained.network_state())


@pytest.mark.parametrize(
    ("options", "model", "option", "problem"),
    [
        ({"blocks": [4], **ALONE}, {}, "blocks", "no block 4"),
        ({"keep_rate": 0.2, **ALONE}, {}, "keep_rate", "leaves none of 64"),
        ({"kl_weight": 0.0}, {}, "token_weight", "not comparable"),
        (ALONE, {"global_pool": "map", "class_token": False}, "keep_rate", "pools with `map`"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], model: dict[str, Any], option: str, problem: str
) -> None:
    with pytest.raises(OptionError, match=problem) as caught:
        strategy(NAME, options).claims(facts_for(ModelSpec(model=toy().model, args={**toy().args, **model})))
    assert caught.value.option == option


def test_without_a_teacher_the_way_out_is_said() -> None:
    from strategies.claims import conflicts

    reasons = conflicts([strategy(NAME, {})], Facts(facts_of(toy())))
    assert len(reasons) == 2
    assert all("Way out: set `teacher`" in reason for reason in reasons)
