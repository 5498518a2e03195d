"""Token matching and merging alone, beside a whole block of the network that merges. Prints JSON.

    python benchmarks/matching.py [--model NAME] [--r N] [--batch-size N] [--rounds N] [--device cpu]

Both parts are timed in turn in one process: what merging adds (similarities, matching, merge), and the rest of the
first block, its MLP on the tokens that are left. The share is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from alternate import timed

from orchestrator.measurement.malloc import keep_freed_memory
from specs.model import ModelSpec
from strategies.backbone import Output, State
from strategies.catalog import facts_of
from strategies.compose import build_model, student_of
from strategies.dynamic.bipartite_matching import match, merge


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
    device, spec = torch.device(args.device), ModelSpec(model=args.model)
    facts, network = facts_of(spec), student_of(build_model(spec)).to(device).eval()
    block, prefix = network.model.blocks[0], facts.num_prefix_tokens
    x = torch.randn(args.batch_size, prefix + facts.num_patches, facts.embed_dim, device=device)
    keys = block.attn.qkv(x)[..., facts.embed_dim : 2 * facts.embed_dim]
    keys = keys.unflatten(-1, (facts.num_heads, facts.head_dim)).transpose(1, 2).detach()

    def matching_and_merging() -> None:
        merge(x, None, match(keys.mean(1), args.r, prefix))

    def rest_of_block() -> None:
        state = network._first_half(0, block, State(x, prefix), Output(x))
        shorter = state.x[:, args.r :].contiguous()
        network._second_half(0, block, State(shorter, prefix))

    own, rest = [], []
    with torch.inference_mode():
        for _ in range(args.rounds + 1):
            own.append(timed(matching_and_merging, device))
            rest.append(timed(rest_of_block, device))
    shares = [a / (a + b) for a, b in zip(own[1:], rest[1:], strict=True)]
    report = {
        "share_of_block": statistics.median(shares),
        "target_share": 0.04,
        "quartiles": statistics.quantiles(shares, n=4)[::2],
        "matching_and_merging_ms": 1000 * statistics.median(own[1:]),
        "rest_of_block_ms": 1000 * statistics.median(rest[1:]),
        "rounds": args.rounds,
        "conditions": {
            "model": args.model,
            "r": args.r,
            "batch_size": args.batch_size,
            "precision": "fp32",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": args.threads,
            "allocator": allocator,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
