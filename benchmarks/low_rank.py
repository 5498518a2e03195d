"""Where the time of a network of low-rank factors goes, beside the plain one. Prints JSON.

    python benchmarks/low_rank.py [--model NAME] [--rank N] [--batch-size N] [--rounds N] [--device cpu]

Both networks run in alternation; the time inside the linear layers of the blocks is added up by hooks. The rest
(attention, norms, GELU, residuals) is the same work in both. So the gain of the whole is bounded by the gain of the
layers alone, diluted by what no factor makes smaller: `gain_if_layers_kept_promise` is the measured rest beside layers
that are as much faster as their MACs promise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.measurement import compute
from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.network import deployed_network, strategy_of
from specs.model import ModelSpec
from strategies.catalog import facts_of
from strategies.factors import Factored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--rank", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    allocator = keep_freed_memory()
    torch.set_num_threads(args.threads)
    device, spec = torch.device(args.device), ModelSpec(model=args.model)
    facts = facts_of(spec)
    shape = (facts.in_chans, facts.image_size, facts.image_size)
    images = torch.randn(args.batch_size, *shape, device=device, generator=torch.Generator(device).manual_seed(0))
    acting = {"plain": [], "factors": [strategy_of({"name": "low_rank", "rank": args.rank})]}
    networks = {name: deployed_network(spec, strategies).network.to(device) for name, strategies in acting.items()}
    macs = {name: compute.static_macs(network, shape) for name, network in networks.items()}
    clocks = {name: Clock(network) for name, network in networks.items()}

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(args.rounds + 1):
            for name in list(networks)[:: 1 if turn % 2 else -1]:
                taken = clocks[name].time(networks[name], images)
                if turn:
                    seconds[name].append(taken)
    whole, layers = ({n: statistics.median(s[i] for s in seconds[n]) for n in networks} for i in (0, 1))
    rest = {name: whole[name] - layers[name] for name in networks}
    products = {name: sum(map(products_of, layers_of(networks[name]))) for name in networks}
    promised = products["plain"] / products["factors"]
    kept = layers["plain"] / promised + rest["factors"]
    whole_macs, factor_macs = macs["plain"], macs["factors"]
    assert whole_macs is not None, "a plain network's cost does not depend on the image"
    assert factor_macs is not None, "nor does that of factors"
    report = {
        "gain": whole["plain"] / whole["factors"],
        "promised_gain": whole_macs / factor_macs,
        "layers": {"gain": layers["plain"] / layers["factors"], "promised_gain": promised},
        "share_of_time_outside_the_layers": {name: rest[name] / whole[name] for name in networks},
        "gain_if_layers_kept_promise": whole["plain"] / kept,
        "milliseconds": {
            "whole": {n: s * 1e3 for n, s in whole.items()},
            "rest": {n: s * 1e3 for n, s in rest.items()},
        },
        "conditions": {
            "model": args.model,
            "rank": args.rank,
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "precision": "fp32",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": args.threads,
            "allocator": allocator,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(report, indent=2))


def layers_of(network: Any) -> list[Any]:
    """The blocks' linear layers, whole or as factors."""
    inside: set[nn.Module] = set()
    found = []
    for module in network.model.blocks.modules():
        if isinstance(module, Factored | nn.Linear) and module not in inside:
            inside |= set(module.modules())
            found.append(module)
    return found


def products_of(layer: Any) -> int:
    """Products a token."""
    return sum(part.in_features * part.out_features for part in layer.modules() if isinstance(part, nn.Linear))


class Clock:
    """Adds up the seconds inside a network's linear layers."""

    def __init__(self, network: Any) -> None:
        self.started, self.inside = 0.0, 0.0
        for layer in layers_of(network):
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave)

    def time(self, network: Any, images: Tensor) -> tuple[float, float]:
        """Seconds of a pass, and those inside the layers."""
        self.inside = 0.0
        start = now(images.device)
        network(images)
        return now(images.device) - start, self.inside

    def _enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.started = now(args[0].device)

    def _leave(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.inside += now(args[0].device) - self.started


def now(device: torch.device) -> float:
    """Seconds, all kernels finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
