from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.api import OptionError
from strategies.claims import conflicts
from strategies.compose import teacher_of
from strategies.dynamic.exit_head import confidence
from strategies.losses import total_loss
from strategies.state import Output
from tests.strategies.toys import facts_for, images, strategy, student, toy

# Random heads on a toy network are all about equally unsure; scaling them spreads the confidences over (0, 1).
SPREAD = 40.0


def network_with_exits(variant: str, *others: Any, **options: Any) -> Any:
    network = student(toy(variant), strategy("early_exit", options), *others)
    with torch.no_grad():
        for head in network.extras["early_exit"].values():
            head.fc.weight.mul_(SPREAD)
    return network.eval()


def masked_reference(network: Any, x: Tensor, blocks: list[int], threshold: float) -> tuple[Tensor, list[int]]:
    """Run every image through the whole timm network, then pick the first confident exit of each."""
    model = network.model
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    answers = {}
    for i, block in enumerate(model.blocks):
        tokens = block(tokens)
        if i in blocks:
            head = network.extras["early_exit"][str(i)]
            summary = tokens[:, 0] if model.cls_token is not None else tokens.mean(1)
            answers[i] = head.fc(head.norm(summary))
    answers[len(model.blocks) - 1] = model.forward_head(model.norm(tokens))
    logits, left = [], []
    for image in range(len(x)):
        for block, answer in answers.items():
            if block == len(model.blocks) - 1 or float(answer[image].softmax(-1).max()) > threshold:
                logits.append(answer[image])
                left.append(block)
                break
    return torch.stack(logits), left


@pytest.mark.parametrize("variant", ["plain", "average_pool", "distilled", "registers"])
@pytest.mark.parametrize("quantile", [0.2, 0.7])
def test_compacted_batch_equals_the_masked_reference(variant: str, quantile: float) -> None:
    network, x = network_with_exits(variant, blocks=[0, 1, 2]), images(24)
    with torch.no_grad():
        confidences = torch.stack([logits.softmax(-1).amax(-1) for logits in network.train()(x).exits.values()])
        threshold = float(confidences[0].quantile(quantile))  # so that some images leave at the first exit
        for head in network.extras["early_exit"].values():
            head.threshold.fill_(threshold)
        out, (logits, left) = network.eval()(x), masked_reference(network, x, [0, 1, 2], threshold)
    torch.testing.assert_close(out.logits, logits, atol=1e-5, rtol=1e-5)
    assert out.exit_block.tolist() == left
    assert left.count(0) == int((confidences[0] > threshold).sum())
    assert len(set(left)) > 1


def test_nothing_is_computed_after_the_last_image_has_left() -> None:
    network, x = network_with_exits("plain", blocks=[1, 2], threshold=0.0), images()
    with torch.no_grad():
        out, (logits, left) = network(x), masked_reference(network, x, [1, 2], 0.0)
    torch.testing.assert_close(out.logits, logits, atol=1e-5, rtol=1e-5)
    assert out.exit_block.tolist() == left == [1] * 6
    assert out.num_tokens == [65, 65, 0, 0]


def test_images_that_left_cost_nothing() -> None:
    network, x = network_with_exits("plain", blocks=[0, 1, 2], threshold=0.6), images(24)
    rows: list[int] = []
    for block in network.model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        left = network(x).exit_block
    assert rows == [num for block in range(4) if (num := int((left >= block).sum()))]
    assert rows[0] > rows[-1] > 0


def test_together_with_merging_a_batch_equals_single_images() -> None:
    merging = strategy("token_merging", {"r": 8})
    network, x = network_with_exits("average_pool", merging, blocks=[0, 1, 2], threshold=0.6), images(12)
    with torch.no_grad():
        out, single = network(x), [network(image) for image in x.split(1)]
    torch.testing.assert_close(out.logits, torch.cat([s.logits for s in single]), atol=1e-5, rtol=1e-5)
    assert out.exit_block.tolist() == [int(s.exit_block) for s in single]
    assert len(set(out.exit_block.tolist())) > 1


@pytest.mark.parametrize(
    ("name", "options", "tokens", "half", "none"),
    [
        ("token_merging", {"r": 8}, [57, 49, 41, 33], 33 / 2, 0),
        ("token_reorganization", {"keep_rate": 0.5, "blocks": [0, 2]}, [34, 34, 19, 19], 19 / 2, 0),
        ("token_idling", {"blocks": [1, 2]}, [65, 46, 33, 65], (65 + 46 + (33 + 65) / 2) / 4, (65 + 46) / 4),
    ],
)
def test_of_images_that_left_no_tokens_are_reported(
    name: str, options: dict[str, Any], tokens: list[int], half: float, none: float
) -> None:
    """Of eight images four leave after block 1; then all do."""
    acting = strategy(name, options)
    network, x = network_with_exits("plain", acting, blocks=[1]), images(8)
    head = network.extras["early_exit"]["1"]
    with torch.no_grad():
        sure = network.train()(x).exits[1].softmax(-1).amax(-1).sort().values
        head.threshold.fill_(float(sure[3] + sure[4]) / 2)
        out, single = network.eval()(x), [network(image) for image in x.split(1)]
        assert sorted(out.exit_block.tolist()) == [1] * 4 + [3] * 4
        assert out.num_tokens == tokens
        assert list(acting.measure(out).values()) == [half]
        assert np.mean([list(acting.measure(one).values()) for one in single]) == half
        head.threshold.fill_(0.0)
        assert list(acting.measure(network(x)).values()) == [none]


def test_certainty_itself_does_not_exceed_a_threshold_of_one() -> None:
    logits = torch.tensor([[1e4, 0.0, 0.0], [80.0, 0.0, 1.0]])
    assert not (confidence(logits) > 1.0).any()


def test_all_images_pass_all_exits_in_training() -> None:
    network = network_with_exits("plain", blocks=[0, 2], threshold=0.0).train()
    out = network(images())
    assert out.exit_block is None
    assert {b: tuple(logits.shape) for b, logits in out.exits.items()} == {0: (6, 10), 2: (6, 10)}
    assert out.num_tokens == [65] * 4


def log_softmax(logits: Tensor) -> np.ndarray:
    z = logits.detach().double().numpy()
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def a_training_output() -> Output:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, 7, generator=generator, requires_grad=True)  # noqa: E731
    return Output(draw(), exits={0: draw(), 2: draw()}, num_tokens=[65] * 4)


@pytest.mark.parametrize("soft", [False, True])
def test_exit_losses_equal_their_definition(soft: bool) -> None:
    out, taught = a_training_output(), Output(torch.randn(5, 7))
    labels = torch.tensor([0, 3, 6, 2, 2])
    wanted = torch.softmax(torch.randn(5, 7), -1) if soft else torch.nn.functional.one_hot(labels, 7).double()
    terms = strategy("early_exit", {"blocks": [0, 2], "distill": "teacher"}).losses(
        out, taught, wanted if soft else labels
    )
    cross_entropy = {b: -(wanted.numpy() * log_softmax(z)).sum(-1).mean() for b, z in out.exits.items()}
    guide = log_softmax(taught.logits)
    divergence = {b: (np.exp(guide) * (guide - log_softmax(z))).sum(-1).mean() for b, z in out.exits.items()}
    assert terms["exits"].item() == pytest.approx(1 / 4 * cross_entropy[0] + 3 / 4 * cross_entropy[2], rel=1e-5)
    assert terms["distill"].item() == pytest.approx(1 / 4 * divergence[0] + 3 / 4 * divergence[2], rel=1e-5)


def test_the_loss_is_the_mean_over_all_heads_weighted_by_depth() -> None:
    exits = strategy("early_exit", {"blocks": [0, 2]})
    student(toy(), exits)
    out, labels = a_training_output(), torch.tensor([0, 3, 6, 2, 2])
    loss, _ = total_loss([exits], out, None, labels)
    heads = {1: out.exits[0], 3: out.exits[2], 4: out.logits}
    one_hot = torch.nn.functional.one_hot(labels, 7).double().numpy()
    by_head = {number: -(one_hot * log_softmax(z)).sum(-1).mean() for number, z in heads.items()}
    assert loss.item() == pytest.approx(np.average(list(by_head.values()), weights=list(by_head)), rel=1e-5)


def test_the_last_logits_teach_but_do_not_learn_from_the_exits() -> None:
    out = a_training_output()
    exits = strategy("early_exit", {"blocks": [0, 2], "distill": "last"})
    exits.losses(out, None, torch.zeros(5, dtype=torch.int64))["distill"].backward()
    assert out.logits.grad is None
    assert all(float(z.grad.abs().sum()) > 0 for z in out.exits.values())
    same = Output(out.logits, exits={1: out.logits}, num_tokens=[65] * 4)
    assert exits.losses(same, None, torch.zeros(5, dtype=torch.int64))["distill"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("depth", "blocks"), [(2, (0,)), (4, (0, 1, 2)), (12, (2, 5, 8)), (24, (5, 11, 17))])
def test_exits_stand_at_the_quarters_by_default(depth: int, blocks: tuple[int, ...]) -> None:
    assert strategy("early_exit", {}).exits(depth) == blocks


@pytest.mark.parametrize(("block", "problem"), [(3, "block 3 is the last one"), (7, "there is no block 7")])
def test_an_exit_after_the_last_block_is_refused(block: int, problem: str) -> None:
    with pytest.raises(OptionError, match=problem) as caught:
        strategy("early_exit", {"blocks": [1, block]}).claims(facts_for(toy()))
    assert caught.value.allowed == "blocks from 0 to 2"


def test_shares_of_exits_are_reported() -> None:
    exits = strategy("early_exit", {"blocks": [0, 2]})
    exits.wrap(student(toy()), facts_for(toy()))
    out = Output(torch.zeros(4, 10), exit_block=torch.tensor([0, 3, 0, 2]))
    assert exits.measure(out) == {"exited_0": 0.5, "exited_2": 0.25}


def test_a_teacher_with_exits_hands_out_features_of_all_images() -> None:
    spec, x = toy(), images()
    network = network_with_exits("plain", blocks=[0, 2], threshold=0.99)
    with torch.no_grad():
        expected = network(x)
        assert len(set(expected.exit_block.tolist())) > 1, "some leave early and some do not"
        guide = teacher_of(network, [strategy("feature", {"pairs": [[0, 1], [3, 3]]})], facts_for(spec))
        out = guide(x)
    assert {block: len(tokens) for block, tokens in out.features.items()} == {1: len(x), 3: len(x)}
    torch.testing.assert_close(out.logits, expected.logits)
    assert torch.equal(out.exit_block, expected.exit_block)


@pytest.mark.parametrize("variant", ["plain", "average_pool", "registers"])
def test_heads_on_the_grid_equal_their_definition(variant: str) -> None:
    """By loops over patches, neighbours, squares and heads."""
    network = network_with_exits(variant, blocks=[1, 2], head="conv_attention").train()
    P, D, E = network.model.num_prefix_tokens, 48, 16
    seen: dict[int, Tensor] = {}
    for block, head in network.extras["early_exit"].items():
        head.norm.register_forward_hook(lambda _, args, y, block=int(block): seen.update({block: y.detach()}))
    with torch.no_grad():
        exits = network(images(2)).exits
    gelu, heads = torch.nn.functional.gelu, network.extras["early_exit"]

    def classified(head: Any, x: Tensor, pooled: Tensor) -> Tensor:
        return head.fc(pooled + x[0] if network.model.cls_token is not None else pooled)

    for i in range(2):
        x, head = seen[1][i], heads["1"]
        first = gelu(head.patches.into(x[P:])).detach()
        outputs = []
        for row in range(8):
            for column in range(8):
                total = head.patches.around.bias.detach().clone()
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= row + dy < 8 and 0 <= column + dx < 8:
                            neighbour = first[8 * (row + dy) + column + dx]
                            total += head.patches.around.weight[:, 0, dy + 1, dx + 1].detach() * neighbour
                outputs.append(x[P + 8 * row + column] + head.patches.out(gelu(total)))
        expected = classified(head, x, sum(outputs) / 64)
        torch.testing.assert_close(exits[1][i], expected, atol=1e-4, rtol=1e-4)

        x, head = seen[2][i], heads["2"]
        at = [P + 16 * r + 2 * c for r in range(4) for c in range(4)]
        squares = torch.stack([(x[p] + x[p + 1] + x[p + 8] + x[p + 9]) / 4 for p in at])
        q, k, v = head.patches.qkv(squares).split(D, dim=1)
        parts = []
        for h in range(3):
            one = slice(E * h, E * (h + 1))
            parts.append((q[:, one] @ k[:, one].T / 4).softmax(-1) @ v[:, one])
        expected = classified(head, x, head.patches.proj(torch.cat(parts, dim=1)).mean(0))
        torch.testing.assert_close(exits[2][i], expected, atol=1e-4, rtol=1e-4)


def test_heads_on_the_grid_refuse_what_breaks_the_grid() -> None:
    exits = strategy("early_exit", {"blocks": [1], "head": "conv_attention"})
    for blocks, fits in (([2, 3], True), ([1], False), ([0], False)):
        reasons = conflicts([exits, strategy("token_merging", {"r": 8, "blocks": blocks})], facts_for(toy()))
        assert (not reasons) == fits
        assert all("the whole patch grid" in reason and "Way out" in reason for reason in reasons)


def test_heads_on_the_grid_read_it_before_the_next_block_drops_patches() -> None:
    exits = strategy("early_exit", {"blocks": [0], "head": "conv_attention", "threshold": 0.3})
    for name in ("soft_token_pruning", "token_idling"):
        for blocks, fits in (([1, 2], True), ([0, 1], False)):
            dropping = strategy(name, {"blocks": blocks, "keep_rate": 0.5})
            reasons = conflicts([exits, dropping], facts_for(toy()))
            assert (not reasons) == fits
            if fits:
                with torch.no_grad():
                    assert torch.isfinite(student(toy(), exits, dropping).eval()(images()).logits).all()
