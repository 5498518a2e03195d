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

import torch
from alternate import seconds_each

from orchestrator.measurement.compute import static_macs
from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.memory import InferenceJob, Probe, inference_peak
from orchestrator.measurement.network import Recipe
from specs.model import ModelSpec
from strategies.catalog import facts_of

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
    seconds = seconds_each(networks, images, args.rounds)
    gains = [plain / merged for plain, merged in zip(seconds["plain"], seconds["merged"], strict=True)]
    gain, promise = statistics.median(gains), macs["plain"] / macs["merged"]
    memory = {}
    for name, recipe in recipes.items():
        if device.type == "cuda":
            memory[name] = inference_peak(networks[name], [images])
        else:
            job = InferenceJob(recipe=recipe, batch_size=args.batch_size, input_shape=shape, threads=args.threads)
            memory[name] = Probe({"job": job}).result("job")
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


if __name__ == "__main__":
    main()
