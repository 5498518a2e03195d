"""Every strategy that removes work: the measured gain in throughput beside the gain that its MACs promise. Prints JSON.

    python benchmarks/strategies_speed.py [--only NAME,NAME] [--model NAME] [--batch-sizes 64 1] [--rounds N]

Each network and the plain one run in one process, in alternation, on the same random images; every round gives one
ratio, and the gain is their median. MACs are counted on both with attention unfused; where the cost depends on the
image, as a mean over images that are timed. Weights are random: exits, halting and sampling are set so that they act.
The allocator keeps freed memory, for all alike.

Smaller matrices are multiplied at a lower rate, whoever made them small. So beside each strategy that leaves fewer
tokens runs `same_tokens`: the plain network whose blocks see so many tokens, cut off without any choice. Its share of
its own promise is what a strategy could reach that costs nothing. `--table` prints a result as Markdown instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from alternate import seconds_each
from torch import Tensor, nn

from orchestrator.measurement import compute
from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.network import deployed_network, strategy_of
from specs.model import ModelSpec
from strategies import registry
from strategies.catalog import facts_of

SETTINGS: dict[str, dict[str, Any]] = {
    "token_merging": {"r": 13},
    "token_fusion": {"r": 13},
    "token_reorganization": {"keep_rate": 0.7},
    "slow_fast_tokens": {"keep_rate": 0.5},
    "token_idling": {"keep_rate": 0.7},
    "token_sparsification": {"keep_rate": 0.7, "kl_weight": 0.0, "token_weight": 0.0},
    "soft_token_pruning": {"keep_rate": 0.7, "kl_weight": 0.0},
    "adaptive_halting": {"gamma": 2.0, "beta": 2.0},
    "adaptive_computation": {"threshold": 0.9526},
    "coarse_to_fine": {"alpha": 0.3, "threshold": 1.0},
    "elastic_resolution": {"size": 160, "keep_rate": 0.7},
    "adaptive_token_sampling": {"max_tokens": 60},
    "early_exit": {"blocks": [5], "threshold": 0.0},
    "structured_pruning": {"ratio": 0.5},
    "low_rank": {"rank": 96},
}
"""Options under which each removes a good part of the work of a DeiT-S on random images."""
TARGET = {64: 0.9, 1: 0.8}
"""Batch size → share of the promise that is to be reached."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETTINGS))
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", metavar="JSON", help="print this result as a table and measure nothing")
    args = parser.parse_args()
    if args.table is not None:
        with open(args.table, encoding="utf-8") as file:
            sys.stdout.write(table(json.load(file)["strategies"]))
        return

    allocator = keep_freed_memory()
    torch.set_num_threads(args.threads)
    device, spec = torch.device(args.device), ModelSpec(model=args.model)
    facts = facts_of(spec)
    shape = (facts.in_chans, facts.image_size, facts.image_size)
    images = torch.randn(max(args.batch_sizes), *shape, device=device, generator=torch.Generator(device).manual_seed(0))
    plain = deployed_network(spec, []).network.to(device)
    plain_macs = mean_macs(plain, images, shape)
    found = {}
    for name in args.only.split(","):
        network = deployed_network(spec, [strategy_of({"name": name, **SETTINGS[name]})]).network.to(device)
        promise = plain_macs / mean_macs(network, images, shape)
        found[name] = {"options": SETTINGS[name], "promised_gain": promise}
        for batch_size in args.batch_sizes:
            shown = images[:batch_size]
            fewer, fewer_promise = same_tokens(plain, network, shown), None
            if fewer is not None:
                fewer_promise = plain_macs / mean_macs(fewer, images, shape)
            timed_networks = {"plain": plain, "network": network} | ({} if fewer is None else {"same_tokens": fewer})
            found[name][f"batch_{batch_size}"] = gains(
                timed_networks, shown, {"network": promise, "same_tokens": fewer_promise}, args.rounds
            )
    report = {
        "strategies": found,
        "target_share": TARGET,
        "not_timed": sorted(set(registry.builtin_names()) - set(found)),
        "conditions": {
            "model": args.model,
            "plain_gmacs": plain_macs / 1e9,
            "rounds": args.rounds,
            "precision": "fp32",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": args.threads,
            "allocator": allocator,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(report, indent=2))


def mean_macs(network: Any, images: Tensor, shape: tuple[int, int, int]) -> float:
    """MACs of one image, as a mean where images differ."""
    count = compute.static_macs(network, shape)
    if count is not None:
        return count
    return statistics.fmean(c.macs for c in compute.counts_of_images(network, images[:16]))


class SameTokens(nn.Module):
    """The plain network whose blocks leave so many tokens as a strategy does, the first ones."""

    def __init__(self, model: Any, counts: Sequence[int]) -> None:
        super().__init__()
        self.model, self.counts = model, counts

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        m = self.model
        x = m.norm_pre(m._pos_embed(m.patch_embed(images)))
        for block, count in zip(m.blocks, self.counts, strict=True):
            x = (x + block.ls1(block.attn(block.norm1(x))))[:, :count]
            x = x + block.ls2(block.mlp(block.norm2(x)))
        logits: Tensor = m.forward_head(m.norm(x))
        return logits


def same_tokens(plain: Any, network: Any, images: Tensor) -> SameTokens | None:
    """The same numbers of tokens without the strategy; `None` if it keeps all, or runs its blocks twice."""
    with torch.inference_mode():
        counts = [round(count) for count in network(images).num_tokens]
        whole = plain(images).num_tokens
    if len(counts) != len(whole) or counts == whole:
        return None
    return SameTokens(plain.model, counts)


def gains(
    networks: Mapping[str, Any], images: Tensor, promises: Mapping[str, float | None], rounds: int
) -> dict[str, Any]:
    """Measured gains at one batch size over the plain network, and their shares of the promises."""
    seconds = seconds_each(networks, images, rounds, calls=max(1, 16 // len(images)))
    found: dict[str, dict[str, Any]] = {}
    for name in networks:
        promise = promises.get(name)
        if promise is not None:
            ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
            found[name] = {
                "gain": statistics.median(ratios),
                "share_of_promise": statistics.median(ratios) / promise,
                "gain_quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
    rates = {name: len(images) / statistics.median(s) for name, s in seconds.items()}
    return found.pop("network") | {"images_per_s": rates} | found


def table(strategies: Mapping[str, Any]) -> str:
    """A result as Markdown: each strategy's shares of its promise, beside those of the same tokens alone."""
    columns = [
        (batch, of)
        for batch in next(iter(strategies.values()))
        if batch.startswith("batch_")
        for of in ("network", "same_tokens")
        if of == "network" or any(of in one[batch] for one in strategies.values())
    ]
    heads = {"network": "share at {}", "same_tokens": "same tokens alone at {}"}
    head = ["strategy", "promised gain", *(heads[of].format(batch.replace("_", " ")) for batch, of in columns)]
    rows = [head, ["---"] * len(head)]
    for name, one in strategies.items():
        found = [one[batch] if of == "network" else one[batch].get(of) for batch, of in columns]
        shares = ["" if f is None else f"{f['share_of_promise']:.2f}" for f in found]
        rows.append([f"`{name}`", f"{one['promised_gain']:.2f}", *shares])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
