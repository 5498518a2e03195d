from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies import registry
from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.compose import teacher_of
from strategies.dynamic.grids import embed_at, positions_for
from strategies.dynamic.refinement import children_of
from tests.strategies.checks import DEIT, assert_exports, counted_macs, deit_with, outside_blocks, plain_block
from tests.strategies.toys import VARIANTS, facts_for, images, step, strategy, student, teacher, toy

LABELS = torch.tensor([0, 3, 9, 2, 2, 7])
WITH_CLASS_TOKEN = sorted(set(VARIANTS) - {"average_pool"})


def network_with(variant: str = "plain", *others: Any, **options: Any) -> Any:
    """In evaluation. Positions and reuse are far from where they start, so that tests see them."""
    acting = strategy("coarse_to_fine", options)
    network = student(toy(variant), acting, *others)
    with torch.no_grad():
        for parameter in network.extras["coarse_to_fine"].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    acting.at(network, 1.0)
    return network.eval()


def by_blocks(model: Any, x: Tensor, start: int = 99) -> tuple[Tensor, np.ndarray, list[Tensor]]:
    """timm's own blocks on one image's tokens [1, N, D]: the normed tokens, the class token's attention averaged from
    block `start` as the paper says, written out head by head, and the tokens behind each block."""
    averaged, behind = np.zeros(x.shape[1]), []
    for i, block in enumerate(model.blocks):
        if i >= start:
            attn, normed = block.attn, block.norm1(x)
            q, k, _ = attn.qkv(normed).reshape(-1, 3, attn.num_heads, attn.head_dim).unbind(1)
            q, k = attn.q_norm(q), attn.k_norm(k)
            rows = [(k[:, h] @ q[0, h] * attn.scale).softmax(0) for h in range(attn.num_heads)]
            averaged = 0.99 * averaged + 0.01 * torch.stack(rows).mean(0).numpy()
        x = block(x)
        behind.append(x)
    return model.norm(x), averaged, behind


def by_the_paper(network: Any, image: Tensor, coarse: int, alpha: float, start: int) -> dict[str, Any]:
    """Both passes of one image [1, 3, 64, 64], patch by patch, with timm's modules."""
    model, own, s = network.model, network.extras["coarse_to_fine"], 8 // coarse
    small = image.reshape(1, 3, coarse * 8, s, coarse * 8, s)
    middle = slice((s - 1) // 2, s // 2 + 1)  # bilinear interpolation reads the one or two pixels in the middle
    small = small[:, :, :, middle, :, middle].mean((3, 5))
    P = model.num_prefix_tokens
    prefix = [t for t in (model.cls_token, getattr(model, "dist_token", None), model.reg_token) if t is not None]

    def embedded(picture: Tensor, positions: Tensor) -> Tensor:
        patches = model.patch_embed.proj(picture).flatten(2).transpose(1, 2)
        return torch.cat([*prefix, patches], 1) + positions

    first = embedded(small, own.positions.view(1, -1, 48))
    found, attention, _ = by_blocks(model, first, start)
    best = sorted(range(coarse**2), key=lambda c: -attention[P + c])
    chosen = best[: math.ceil(alpha * coarse**2)]
    second = embedded(image, model.pos_embed)
    tokens, where = [second[:, :P]], {}
    for r in range(8):
        for c in range(8):
            parent = r // s * coarse + c // s
            if parent in chosen:
                token = second[:, P + 8 * r + c]
                if own.reuse is not None:
                    token = token + own.reuse(found[:, P + parent])
                where[r, c] = sum(t.shape[1] for t in tokens)
                tokens.append(token[:, None])
    for parent in sorted(set(range(coarse**2)) - set(chosen)):
        for child in range(s * s):
            where[parent // coarse * s + child // s, parent % coarse * s + child % s] = sum(t.shape[1] for t in tokens)
        tokens.append(first[:, P + parent][:, None])
    normed, _, behind = by_blocks(model, torch.cat(tokens, 1))
    places = [*range(P), *(where[r, c] for r in range(8) for c in range(8))]
    return {"coarse": found, "fine": normed, "places": places, "behind": behind, "num": normed.shape[1]}


@pytest.mark.parametrize("variant", WITH_CLASS_TOKEN)
@pytest.mark.parametrize(("coarse", "alpha", "reuse", "start"), [(4, 0.5, True, 1), (2, 0.3, False, 0)])
def test_both_passes_equal_the_papers_definition(
    variant: str, coarse: int, alpha: float, reuse: bool, start: int
) -> None:
    network = network_with(variant, coarse=coarse, alpha=alpha, reuse=reuse, start=start, threshold=1.0)
    model = network.model
    with torch.no_grad():
        out, training = network(images(3)), copy.deepcopy(network).train()(images(3))
        for i, image in enumerate(images(3).split(1)):
            expected = by_the_paper(network, image, coarse, alpha, start)
            for tokens, ours in (
                (expected["coarse"], training.readouts["coarse_to_fine"]["coarse_logits"]),
                (expected["fine"], out.logits),
            ):
                if model.global_pool == "token":
                    answer = model.forward_head(tokens)
                else:  # every patch of the fine grid counts once, in whichever token it is
                    at = expected["places"][1:] if tokens is expected["fine"] else range(1, tokens.shape[1])
                    answer = model.head(model.fc_norm(tokens[:, list(at)].mean(1)))
                torch.testing.assert_close(ours[i], answer[0], atol=1e-5, rtol=1e-5)
            assert out.num_tokens == [model.num_prefix_tokens + coarse**2] * 4 + [expected["num"]] * 4


def test_children_lie_in_their_parents() -> None:
    chosen = torch.tensor([[5, 0, 3], [8, 4, 2]])
    index, parent = children_of(chosen, coarse=3, fine=6)
    for row in range(2):
        assert index[row].tolist() == sorted(index[row].tolist())
        for child, place in zip(index[row].tolist(), parent[row].tolist(), strict=True):
            assert (child // 6 // 2) * 3 + child % 6 // 2 == chosen[row, place]
        assert len(set(index[row].tolist())) == 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_own_embedding_at_the_networks_size_is_the_networks(variant: str) -> None:
    network = student(toy(variant), strategy("distillation_token", {})) if variant == "plain" else student(toy(variant))
    with torch.no_grad():
        ours = embed_at(network.eval(), images(2), positions_for(network.model, 8))
        assert torch.equal(ours.x, network.embed(images(2)).x)


def test_images_that_are_done_cost_nothing_more_and_the_others_get_both_passes() -> None:
    network, x = network_with(threshold=1.0), images(24)
    whole = copy.deepcopy(network)
    with torch.no_grad():
        first = copy.deepcopy(network).train()(x).readouts["coarse_to_fine"]["coarse_logits"]
        confidences = first.softmax(-1).amax(-1)
        network.whole.threshold = float(confidences.quantile(0.6))
        rows: list[int] = []
        network.model.blocks[0].mlp.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        out = network(x)
        done = confidences >= network.whole.threshold
        torch.testing.assert_close(out.logits[done], first[done], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.logits[~done], whole(x).logits[~done], atol=1e-5, rtol=1e-5)
        assert rows == [24, int((~done).sum())]
        assert 0 < rows[1] < 24
        assert strategy("coarse_to_fine", {}).measure(out) == {"done_coarse": pytest.approx(1 - rows[1] / 24)}
        network.whole.threshold = 0.0
        torch.testing.assert_close(network(x).logits, first, atol=1e-5, rtol=1e-5)
        assert rows[2:] == [24]


def test_the_loss_pulls_the_coarse_answer_alone() -> None:
    acting = strategy("coarse_to_fine", {"warmup": 0.0})
    out = student(toy(), acting).train()(images())
    coarse = out.readouts["coarse_to_fine"]["coarse_logits"]
    loss = acting.losses(out, None, LABELS)["coarse"]
    p, q = (logits.detach().double().softmax(-1).numpy() for logits in (out.logits, coarse))
    assert loss.item() == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    by_coarse, by_fine = torch.autograd.grad(loss, (coarse, out.logits), allow_unused=True)
    assert by_fine is None
    np.testing.assert_allclose(by_coarse.numpy(), (q - p) / 6, atol=1e-6)


def test_features_stand_on_the_full_grid() -> None:
    feature = strategy("feature", {"pairs": [[1, 1], [3, 3]]})
    network = network_with("registers", feature, threshold=1.0)
    with torch.no_grad():
        features = copy.deepcopy(network).train()(images(2)).features
        for i, image in enumerate(images(2).split(1)):
            expected = by_the_paper(network, image, 4, 0.5, 1)
            for block in (1, 3):
                there = expected["behind"][block][:, expected["places"]]
                torch.testing.assert_close(features[block][i], there[0], atol=1e-5, rtol=1e-5)


def test_a_teacher_answers_as_it_would_and_hands_out_features_of_all_images() -> None:
    network = network_with(threshold=1.0)
    with torch.no_grad():
        first = copy.deepcopy(network).train()(images()).readouts["coarse_to_fine"]["coarse_logits"]
        network.whole.threshold = float(first.softmax(-1).amax(-1).median())
        expected = network(images()).logits
        guide = teacher_of(network, [strategy("feature", {"pairs": [[0, 1]]})], facts_for(toy()))
        out = guide(images())
    assert out.features[1].shape == (6, 65, 48)
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)


def test_all_patches_are_refined_until_the_warmup_is_over() -> None:
    acting = strategy("coarse_to_fine", {"warmup": 0.5, "alpha": 0.25})
    network = student(toy(), acting).train()
    for progress, tokens in ((0.0, 65), (0.49, 65), (0.5, 1 + 4 * 4 + 12), (1.0, 29)):
        acting.at(network, progress)
        assert network(images(2)).num_tokens == [tokens] * 4


def test_tokens_of_images_that_are_done_are_not_reported() -> None:
    merging = strategy("token_merging", {"r": 2})
    network = student(
        toy(), merging, strategy("coarse_to_fine", {"alpha": 1.0, "reuse": False, "threshold": 0.5})
    ).eval()
    with torch.no_grad():
        first = copy.deepcopy(network).train()(images(4)).readouts["coarse_to_fine"]["coarse_logits"]
        sure = first.softmax(-1).amax(-1).sort().values
        # Four blocks take two of 17 tokens each, and two of 65. One image of four takes the fine pass; then none does.
        for threshold, kept in ((float(sure[0] + sure[1]) / 2, 57 / 4), (0.0, 0)):
            network.whole.threshold = threshold
            out = network(images(4))
            assert out.num_tokens == [15, 13, 11, 9, *([63, 61, 59, 57] if kept else [0] * 4)]
            assert merging.measure(out) == {"tokens_kept": kept}


PICTURES = ("window_attention", "skip_attention", "spatial_reduction_attention", "rotary_position", "token_merging")


@pytest.mark.parametrize("name", PICTURES)
def test_what_needs_the_grid_goes_together_with_refining_everything(name: str) -> None:
    pair = [strategy(name, registry.load(name).examples[0]), strategy("coarse_to_fine", {"alpha": 1.0})]
    reasons = conflicts(pair, facts_for(toy()))
    if name == "token_merging":  # would merge what is to be reused
        assert "`coarse_to_fine`" in reasons[0]
        pair[1] = strategy("coarse_to_fine", {"alpha": 1.0, "reuse": False})
        reasons = conflicts(pair, facts_for(toy()))
    assert reasons == []
    network = student(toy(), *pair)
    assert torch.isfinite(step(network, pair, images(), LABELS, teacher(*pair)))
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"coarse": 3}, "3 of the 8 patches.*allowed: 1 or 2 or 4"),
        ({"coarse": 8}, "8 of the 8"),
        ({"start": 4}, "no block 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        strategy("coarse_to_fine", options).claims(facts_for(toy()))


def test_a_grid_without_halves_is_refused() -> None:
    with pytest.raises(OptionError, match=r"half of the 7 patches.*allowed: 1\."):
        strategy("coarse_to_fine", {}).claims(facts_for(toy(img_size=56)))


@pytest.mark.parametrize("model", DEIT)
@pytest.mark.parametrize(("alpha", "reuse"), [(0.5, True), (0.3, False), (1.0, True)])
def test_counted_macs_equal_the_closed_form(model: str, alpha: float, reuse: bool) -> None:
    options = {"alpha": alpha, "reuse": reuse, "threshold": 1.0}
    network, width = deit_with(model, "coarse_to_fine", options)
    num = math.ceil(alpha * 49)
    tokens = 1 + 4 * num + (49 - num)
    total = outside_blocks(width) + 49 * width * 768 + width * 1000
    total += 12 * (plain_block(width, 50) + plain_block(width, tokens))
    total += 9 * (50 + tokens) * width if alpha < 1 else 0  # the class token's row, from block 3 on
    total += 8 * num * width**2 if reuse else 0
    assert counted_macs(network) == total


def test_without_exits_it_exports() -> None:
    assert_exports(network_with(threshold=1.0))
