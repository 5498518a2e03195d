"""What token merging gains in throughput, beside what its MACs promise, and what it costs in memory. Prints JSON.

    python benchmarks/token_merging.py [--model NAME] [--r N] [--batch-size N] [--rounds N] [--device cpu]

Both networks run in one process, in alternation, on the same images; every round gives one ratio, and the gain is their
median. MACs are counted on both with attention unfused, the matching's own products included. Peak memory is that of a
fresh process each. The allocator keeps freed memory, for both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from orchestrator.measurement.compute import static_macs
from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.memory import Probe, ProbeJob, peak_on_gpu
from orchestrator.measurement.network import Recipe
from specs.model import ModelSpec
from strategies.backbone import State
from strategies.catalog import facts_of
from strategies.dynamic.bipartite_matching import match, merge
from strategies.facts import ModelFacts

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--r", type=int, default=13)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    allocator = keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    spec = ModelSpec(model=args.model)
    facts = facts_of(spec)
    shape = (facts.in_chans, facts.image_size, facts.image_size)
    recipes = {
        "plain": Recipe(model=spec),
        "merged": Recipe(model=spec, strategies=({"name": "token_merging", "r": args.r},)),
    }
    networks = {name: recipe.build().network.to(device) for name, recipe in recipes.items()}
    images = torch.randn(args.batch_size, *shape, device=device)

    macs = {name: static_macs(network, shape) for name, network in networks.items()}
    seconds = time_alternately(networks, images, args.rounds)
    gains = [plain / merged for plain, merged in zip(seconds["plain"], seconds["merged"], strict=True)]
    gain, promise = statistics.median(gains), macs["plain"] / macs["merged"]
    memory = {}
    for name, recipe in recipes.items():
        if device.type == "cuda":
            memory[name] = peak_on_gpu(networks[name], networks[name], [images])
        else:
            job = ProbeJob(recipe=recipe, batch_size=args.batch_size, input_shape=shape, threads=args.threads)
            memory[name] = Probe(job).result()
    report = {
        "gain": gain,
        "promised_gain": promise,
        "share_of_promise": gain / promise,
        "target_share": 0.9,
        "gain_quartiles": statistics.quantiles(gains, n=4)[::2],
        "rounds": args.rounds,
        "images_per_s": {name: args.batch_size / statistics.median(s) for name, s in seconds.items()},
        "gmacs": {name: count / 1e9 for name, count in macs.items()},
        "peak_memory_mib": {name: m.peak / MIB for name, m in memory.items()},
        "activation_memory_mib": {name: m.activations / MIB for name, m in memory.items()},
        "matching_and_merging_share_of_block": matching_share(networks["plain"], facts, args, device),
        "conditions": {
            "model": args.model,
            "r": args.r,
            "batch_size": args.batch_size,
            "input": list(shape),
            "precision": "fp32",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": args.threads,
            "allocator": allocator,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(report, indent=2))


def time_alternately(networks: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of one batch: network → one number a round, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name in list(networks)[:: 1 if turn % 2 else -1]:
                elapsed = timed(lambda network=networks[name]: network(images), images.device)
                if turn:
                    seconds[name].append(elapsed)
    return seconds


def matching_share(plain: nn.Module, facts: ModelFacts, args: argparse.Namespace, device: torch.device) -> float:
    """Time of matching and merging alone over the time of a whole block that merges, in the first block."""
    tokens = facts.num_prefix_tokens + facts.num_patches
    x = torch.randn(args.batch_size, tokens, facts.embed_dim, device=device)
    keys = plain.model.blocks[0].attn.qkv(x)[..., facts.embed_dim : 2 * facts.embed_dim]
    keys = keys.unflatten(-1, (facts.num_heads, facts.head_dim)).transpose(1, 2)

    def matching_and_merging() -> None:
        merge(x, None, match(keys.mean(1), args.r, facts.num_prefix_tokens))

    def rest_of_block() -> None:
        state = plain._attend(0, plain.model.blocks[0], State(x, facts.num_prefix_tokens))
        shorter = state.x[:, args.r :].contiguous()
        shorter + plain.model.blocks[0].mlp(plain.model.blocks[0].norm2(shorter))

    shares = []
    with torch.inference_mode():
        for _ in range(args.rounds + 1):
            own, rest = timed(matching_and_merging, device), timed(rest_of_block, device)
            shares.append(own / (own + rest))
    return statistics.median(shares[1:])


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, all kernels finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
