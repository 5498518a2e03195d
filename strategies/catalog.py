"""Facts of timm networks without timm: planning asks about thousands of them and cannot wait for an import of torch.

For timm's plain Vision Transformers a packaged table holds each model's constructor arguments; the facts follow from
them by arithmetic. All other networks are asked in a second process (`strategies.catalog_build`), and the answer is
kept on disk. The table belongs to one version of timm; under another version every network is asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from specs.model import ModelSpec
from strategies.facts import ModelFacts

TABLE = Path(__file__).with_name("catalog.json")
BUILDER_TIMEOUT_S = 300
FACTS_FORMAT = 3
"""Raised when facts get a new field: kept answers of before do not have it."""
REFUSED, UNKNOWN = 3, 4
"""Exit codes of the second process: arguments that do not fit together; a name that does not exist."""
POOLS = ("", "avg", "avgmax", "max", "token", "map", "prr")


class UnknownModelError(ValueError):
    """A model or constructor argument that timm does not have: a slip of the pen, in whatever combination."""


def facts_of(spec: ModelSpec) -> ModelFacts:
    """Facts of a network, from its name and arguments. What `args` leaves out is as in timm.

    Raises:
        UnknownModelError: if timm has no such model or the model no such argument; names the nearest.
        ValueError: if the arguments do not fit together; says the way out.
    """
    return _facts(spec.model, json.dumps(spec.args, sort_keys=True))


def takes_image_size(model: str) -> bool:
    """Whether the model's constructor takes `img_size` (transformers mostly do; convolutional networks do not)."""
    return model.partition(".")[0] in _sized()


def names() -> list[str]:
    """All model names of timm, without the tags of pretrained weights."""
    return list(_table()["names"])


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


@functools.cache
def _sized() -> frozenset[str]:
    return frozenset(_table()["sized"])


@functools.cache
def _timm_version() -> str:
    try:
        return version("timm")
    except PackageNotFoundError:
        raise ValueError(
            "the package `timm` is not installed. Way out: install slimvit with its dependencies."
        ) from None


@functools.lru_cache(maxsize=100_000)
def _facts(model: str, args_json: str) -> ModelFacts:
    return replace(_structure(model, json.loads(args_json)), args=args_json)


def _structure(model: str, args: dict[str, Any]) -> ModelFacts:
    name, _, tag = model.partition(".")
    table = _table()
    same_timm = table["timm"] == _timm_version()
    if same_timm:
        _check_name(name, tag, table["names"])
        row = table["networks"].get(name)
        if row is not None:
            _check_arguments(model, args, {**table["defaults"], **dict.fromkeys(table["layers"])})
            # An argument that chooses a layer can change anything; only timm itself knows what.
            if not any(args.get(layer) is not None for layer in table["layers"]):
                return _plain(model, table["defaults"] | row["args"] | row.get("tags", {}).get(tag, {}), row, args)
    return _ask(model, args)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that look most like this one, as the end of a message; empty if none does."""
    found = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Nearest: {', '.join(f'`{f}`' for f in found)}." if found else ""


def _check_name(name: str, tag: str, known: Mapping[str, list[str]]) -> None:
    if name not in known:
        raise UnknownModelError(
            f"timm {_timm_version()} has no model `{name}`.{nearest(name, known)} Way out: one of the names that "
            f"`timm.list_models()` prints."
        )
    if tag and tag not in known[name]:
        tags = ", ".join(f"`{name}.{t}`" for t in known[name]) or "none"
        raise UnknownModelError(f"`{name}` has no weights tagged `{tag}`. Way out: one of {tags}, or no tag.")


def _check_arguments(model: str, args: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Names and types of the arguments, against the constructor's defaults."""
    for name, value in args.items():
        if name not in defaults:
            raise UnknownModelError(
                f"`{model}` has no argument `{name}`.{nearest(name, defaults)} Way out: an argument of timm's "
                f"VisionTransformer: {', '.join(sorted(defaults))}."
            )
        default = defaults[name]
        if value is None or default is None or (name in ("img_size", "patch_size") and isinstance(value, list)):
            continue
        accepts = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, accepts) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise ValueError(
                f"`{model}`: `{name}` is {value!r}, which is no {type(default).__name__}. "
                f"Way out: a value like timm's default, {default!r}."
            )


def _side(model: str, name: str, value: Any) -> int:
    """The side of a square size; timm takes one number or two."""
    sides = value if isinstance(value, list) else [value]
    if not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides) or len(set(sides)) != 1:
        raise ValueError(
            f"`{model}`: `{name}` is {value!r}. Way out: one positive number; images and patches are square."
        )
    side: int = sides[0]
    return side


def _plain(model: str, own: dict[str, Any], row: Mapping[str, Any], args: Mapping[str, Any]) -> ModelFacts:
    """Facts of a plain Vision Transformer, as timm's constructor would make them."""
    a = {**own, **{k: v for k, v in args.items() if v is not None}}
    image, patch = _side(model, "img_size", a["img_size"]), _side(model, "patch_size", a["patch_size"])
    distilled = row.get("distilled", False)
    for name in ("embed_dim", "depth", "num_heads", "in_chans", "num_classes"):
        if name in args and a[name] < 1:  # published feature extractors have 0 classes
            raise ValueError(f"`{model}`: `{name}` is {a[name]}. Way out: at least 1.")
    if not 0 <= a["patch_drop_rate"] < 1:
        raise ValueError(f"`{model}`: `patch_drop_rate` is {a['patch_drop_rate']}. Way out: a share from 0 to below 1.")
    if a["mlp_ratio"] <= 0 or a["reg_tokens"] < 0:
        raise ValueError(f"`{model}`: `mlp_ratio` must be positive and `reg_tokens` not negative.")
    if a["embed_dim"] % a["num_heads"]:
        fits = [h for h in range(1, a["embed_dim"] + 1) if a["embed_dim"] % h == 0]
        width = a["embed_dim"] // a["num_heads"] * a["num_heads"]
        near = sorted(sorted(fits, key=lambda h: abs(h - a["num_heads"]))[:2])
        raise ValueError(
            f"`{model}`: `embed_dim` {a['embed_dim']} is no multiple of `num_heads` {a['num_heads']}. Way out: "
            f"`num_heads` {' or '.join(map(str, near))}, or `embed_dim` {width}."
        )
    # Some published models have a size that is no multiple (their border is cut off); they stay as they were published.
    changed = image != _side(model, "img_size", own["img_size"]) or patch != _side(
        model, "patch_size", own["patch_size"]
    )
    if image < patch or (image % patch and changed):
        below, above = image // patch * patch, (image // patch + 1) * patch
        fits = [p for p in range(2, image + 1) if image % p == 0]
        nearest_patch = min(fits, key=lambda p: abs(p - patch), default=image)
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"`{model}`: images of {image} px cannot be cut into patches of {patch} px. Way out: `img_size` {sizes} "
            f"(with `data.image_size` alike), or `patch_size` {nearest_patch}."
        )
    if a["global_pool"] not in POOLS:
        raise ValueError(
            f"`{model}`: no pooling `{a['global_pool']}`. Way out: one of {', '.join(filter(None, POOLS))}."
        )
    if a["global_pool"] == "token" and not a["class_token"]:
        raise ValueError(
            f"`{model}`: pooling by class token, but `class_token` is false. "
            f"Way out: `global_pool: avg`, or `class_token: true`."
        )
    if distilled and (a["global_pool"] != "token" or a["reg_tokens"] or not a["class_token"]):
        raise ValueError(
            f"`{model}`: timm's distilled models read class and distillation token, and have no registers. "
            f"Way out: leave out `global_pool`, `class_token` and `reg_tokens`, or take a model without `distilled`."
        )
    vit = "why_not_vit" not in row
    heads = a["num_heads"]
    scaled = a["scale_attn_norm"] or a["scale_mlp_norm"]
    common: dict[str, Any] = {
        "model": model,
        "depth": a["depth"],
        "num_classes": a["num_classes"],
        "image_size": image,
        "embed_dim": a["embed_dim"],
        "in_chans": a["in_chans"],
        "global_pool": a["global_pool"],
        "tap_widths": (a["embed_dim"],) * a["depth"],
    }
    if not vit:
        return ModelFacts(**common, family="other", why_not_vit=row["why_not_vit"], can_prune=False)
    return ModelFacts(
        **common,
        family="vit",
        num_heads=heads,
        head_dim=a["embed_dim"] // heads,
        mlp_hidden=int(a["embed_dim"] * a["mlp_ratio"]),
        patch_size=patch,
        num_patches=(image // patch) ** 2,
        num_prefix_tokens=2 if distilled else int(a["class_token"]) + a["reg_tokens"],
        has_class_token=a["class_token"],
        has_distillation_token=distilled,
        can_prune=row.get("can_prune", True) and not scaled,
        qk_norm=a["qk_norm"],
        patch_drop=a["patch_drop_rate"],
    )


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimvit" / "facts"


def _ask(model: str, args: Mapping[str, Any]) -> ModelFacts:
    """Facts from timm itself, in a second process; kept on disk by format, timm's version, name and
    arguments."""
    key = json.dumps([FACTS_FORMAT, _timm_version(), model, args], sort_keys=True)
    path = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "strategies.catalog_build", "--one", model, json.dumps(args)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILDER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"timm did not describe `{model}` within {BUILDER_TIMEOUT_S} s. Way out: try again on a machine less busy."
        ) from error
    if done.returncode:
        last = (done.stdout if done.stdout.strip() else done.stderr).strip().splitlines()[-1:] or ["no reason given"]
        kind = UnknownModelError if done.returncode == UNKNOWN else ValueError
        raise kind(f"{last[0]} Way out: check `model` and `args` against timm's constructor.")
    facts = _restore(json.loads(done.stdout.splitlines()[-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(done.stdout, encoding="utf-8")
    temporary.replace(path)
    return facts


def _read(path: Path) -> ModelFacts | None:
    """A kept answer; one that cannot be read (an older slimvit wrote it) counts as absent and is asked again."""
    try:
        return _restore(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _restore(fields: dict[str, Any]) -> ModelFacts:
    return ModelFacts(**{**fields, "tap_widths": tuple(fields["tap_widths"])})
