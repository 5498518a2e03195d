"""Write `catalog.json`, the table behind `strategies.catalog`; and answer for one network on the command line.

    python -m strategies.catalog_build                     # after a change of timm: rewrite the table
    python -m strategies.catalog_build --one NAME '{...}'  # facts of one network, as JSON

Unlike the catalogue, this module loads torch and timm. Networks are created on the meta device: no memory, no weights.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import timm
import torch
from timm.layers import Mlp
from timm.models import is_model, list_models, list_pretrained, model_entrypoint
from timm.models._input import get_model_input_config
from timm.models._registry import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from strategies.catalog import REFUSED, TABLE, UNKNOWN, UnknownModelError, nearest
from strategies.compose import runs_in_loop
from strategies.facts import ModelFacts
from strategies.inner_widths import inner_axes

PLAIN_MODULES = ("timm.models.vision_transformer", "timm.models.deit")


def on_meta(model: str, **args: Any) -> nn.Module:
    """Create a timm network without memory."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(model, **args)
    return network


def why_not_vit(network: nn.Module) -> str | None:
    """Why the explicit loop cannot run this network; `None` if it can."""
    if runs_in_loop(network):
        return None
    if type(network).__name__ not in ("VisionTransformer", "VisionTransformerDistilled"):
        return f"it is a {type(network).__name__}, not timm's plain VisionTransformer"
    block: Any = network.get_submodule("blocks.0")
    if type(block).__name__ != "Block":
        return f"its blocks are {type(block).__name__}, not timm's plain Block"
    return f"its attention is {type(block.attn).__name__}, not timm's plain Attention"


def can_prune(network: Any) -> bool:
    """Whether heads and MLP channels can be cut: timm's `Mlp`, and no norm over what would be cut."""
    identity = nn.Identity
    return all(type(b.mlp) is Mlp and type(b.mlp.norm) is type(b.attn.norm) is identity for b in network.blocks)


def facts_from(network: Any, model: str) -> ModelFacts:
    """Read the facts of a network off its modules."""
    reason = why_not_vit(network)
    size = get_model_input_config(network)["input_size"]
    common = {
        "model": model,
        "num_classes": network.num_classes,
        "image_size": size[-1],
        "in_chans": size[0],
        "global_pool": getattr(network, "global_pool", "avg"),
    }
    if not isinstance(common["global_pool"], str):
        common["global_pool"] = "avg"
    if reason is not None:
        stages = network.feature_info if hasattr(network, "forward_intermediates") else []
        widths = tuple(s["num_chs"] for s in stages) if isinstance(stages, list) else tuple(stages.channels())
        # A Vision Transformer of other blocks has no table of widths: the catalog knows it without building it.
        axes = {} if isinstance(network, VisionTransformer) else inner_axes(network)
        return ModelFacts(
            **common,
            family="other",
            depth=len(widths),
            why_not_vit=reason,
            embed_dim=network.num_features,
            can_prune=False,
            num_inner_widths=len({axis for dims in axes.values() for axis in dims.values()}),
            tap_widths=widths,
        )
    block = network.blocks[0]
    return ModelFacts(
        **common,
        family="vit",
        depth=len(network.blocks),
        embed_dim=network.embed_dim,
        num_heads=block.attn.num_heads,
        head_dim=block.attn.head_dim,
        mlp_hidden=block.mlp.fc2.in_features if not hasattr(block.mlp, "gate_last") else block.mlp.fc1.out_features,
        patch_size=network.patch_embed.patch_size[0],
        num_patches=network.patch_embed.num_patches,
        num_prefix_tokens=network.num_prefix_tokens,
        has_class_token=network.has_class_token,
        has_distillation_token=hasattr(network, "dist_token"),
        can_prune=can_prune(network),
        qk_norm=type(block.attn.q_norm) is not nn.Identity,
        patch_drop=getattr(network.patch_drop, "prob", 0.0),
        patch_embedding=type(network.patch_embed).__name__,
        tap_widths=(network.embed_dim,) * len(network.blocks),
    )


@contextmanager
def recorded_arguments() -> Iterator[dict[str, Any]]:
    """Record the keyword arguments that timm's entry points pass to `VisionTransformer`, for the last network built."""
    record: dict[str, Any] = {}
    original = VisionTransformer.__init__

    @functools.wraps(original)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        record.clear()
        record.update(kwargs)
        original(self, *args, **kwargs)

    VisionTransformer.__init__ = recording  # type: ignore[method-assign]  # for a moment
    try:
        yield record
    finally:
        VisionTransformer.__init__ = original  # type: ignore[method-assign]  # as it was


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that JSON holds; layer classes are left out (the row's `why_not_vit` stands for them)."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return {k: v for k, v in sorted(plain.items()) if isinstance(v, bool | int | float | str | list)}


def table() -> dict[str, Any]:
    """All names, and the constructor arguments of every plain Vision Transformer."""
    tags: dict[str, list[str]] = {name: [] for name in list_models()}
    for full in list_pretrained():
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    sized = [n for n in tags if (cfg := get_pretrained_cfg(n)) is not None and cfg.fixed_input_size]
    networks: dict[str, Any] = {}
    for name in (n for n in tags if model_entrypoint(n).__module__ in PLAIN_MODULES):
        with recorded_arguments() as record:
            network = on_meta(name)
            own = plain_arguments(record)
            row: dict[str, Any] = {"args": own}
            if (reason := why_not_vit(network)) is not None:
                row["why_not_vit"] = reason
            elif not can_prune(network):
                row["can_prune"] = False
            if hasattr(network, "dist_token"):
                row["distilled"] = True
            by_tag = {}
            for tag in filter(None, tags[name]):
                on_meta(f"{name}.{tag}")
                other = plain_arguments(record)
                if different := {k: v for k, v in other.items() if own.get(k) != v}:
                    by_tag[tag] = different
            if by_tag:
                row["tags"] = by_tag
        networks[name] = row
    parameters = inspect.signature(VisionTransformer.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {
        "timm": version("timm"),
        "defaults": {k: v for k, v in defaults.items() if v is None or isinstance(v, bool | int | float | str)},
        "layers": sorted(k for k, v in defaults.items() if inspect.isclass(v) or inspect.isroutine(v)),
        "networks": networks,
        "sized": sized,
        "names": tags,
    }


def one(model: str, args: dict[str, Any]) -> ModelFacts:
    """Facts of any timm network.

    Raises:
        UnknownModelError: if timm has no such model, or the model no such argument.
        ValueError: if timm refuses the arguments.
    """
    name = model.partition(".")[0]
    if not is_model(name):
        raise UnknownModelError(f"timm {version('timm')} has no model `{name}`.{nearest(name, list_models())}")
    try:
        return facts_from(on_meta(model, **args), model)
    except TypeError as error:
        known = inspect.signature(type(on_meta(model)).__init__).parameters
        unknown = [a for a in args if a not in known]
        if not unknown:
            raise ValueError(f"timm cannot build `{model}` with {args}: {error}.") from error
        near = nearest(unknown[0], known)
        raise UnknownModelError(f"`{model}` has no argument `{unknown[0]}`.{near}") from error
    except (AssertionError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"timm cannot build `{model}` with {args}: {error}.") from error


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    if arguments[:1] == ["--one"]:
        try:
            print(json.dumps(asdict(one(arguments[1], json.loads(arguments[2])))))
        except ValueError as error:
            print(error)
            return UNKNOWN if isinstance(error, UnknownModelError) else REFUSED
        return 0
    TABLE.write_text(json.dumps(table(), indent=None, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
