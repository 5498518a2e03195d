"""Which network a stage starts from, and who teaches: timm arguments completed from the data, checkpoints read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import NetworkSource
from specs.data import DataSpec
from specs.model import ModelSpec
from strategies.catalog import facts_of, takes_image_size
from strategies.facts import ModelFacts
from strategies.shapes import WHOLE, Shapes

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
"""Files of a slimvit checkpoint folder."""
_ARCHITECTURE = ("embed_dim", "depth", "num_heads", "mlp_hidden", "num_prefix_tokens")
"""Facts that published weights fix."""


@dataclass(frozen=True)
class Network:
    """A network as planning knows it."""

    source: NetworkSource
    model: ModelSpec
    """The timm network, its arguments complete."""
    facts: ModelFacts
    """At `shapes`."""
    identity: dict[str, Any]
    """What the network is, for digests: the digest of a stage, of a file, or the model itself."""
    shapes: Shapes
    """What pruning left of it; of a stage that is still to prune, what can be known of that (`Strategy.leaves`)."""


def student_model(spec: ModelSpec, data: DataSpec, num_classes: int) -> ModelSpec:
    """A student's network with `num_classes`, `in_chans` and `img_size` from the data.

    Raises:
        ValueError: if the spec's own arguments contradict the data.
    """
    classes = spec.args.get("num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(
            f"`{spec.model}` is given `num_classes: {classes}`, but the data has {num_classes} classes. "
            "Way out: leave `num_classes` out; it is set from the data."
        )
    return _completed(spec, data, {"num_classes": num_classes})


def teacher_model(spec: ModelSpec, data: DataSpec, num_classes: int, image_size: int | None = None) -> ModelSpec:
    """A teacher's network. Published weights keep the classes and the image size that they were trained on: a fresh
    head teaches nothing, and images can be resampled.

    Args:
        image_size: `teacher.image_size`, side in pixels.

    Raises:
        ValueError: if the spec's own arguments contradict the data.
    """
    published = facts_of(spec) if spec.pretrained else None
    classes = num_classes if published is None else published.num_classes
    args = {"num_classes": spec.args.get("num_classes", classes)}
    if takes_image_size(spec.model):
        own = spec.args.get("img_size")
        if image_size is not None and own not in (None, image_size, [image_size, image_size]):
            raise ValueError(
                f"`{spec.model}` is given `img_size: {own}`, but `teacher.image_size` is {image_size}. "
                "Way out: leave one of them out."
            )
        if own is None:
            default = data.image_size if published is None else published.image_size
            args["img_size"] = default if image_size is None else image_size
    return _with_channels(spec.model_copy(update={"args": {**spec.args, **args}}), data)


def as_teacher(network: Network, image_size: int | None, data: DataSpec) -> Network:
    """A network as a teacher, which sees the images as it is used to.

    Args:
        image_size: `teacher.image_size`, side in pixels; `None` = the network's own.

    Raises:
        ValueError: if the network cannot take images of this size.
    """
    side = network.facts.image_size if image_size is None else image_size
    if side != network.facts.image_size and takes_image_size(network.model.model):
        raise ValueError(
            f"`{network.model.model}` takes images of {network.facts.image_size} px, but `teacher.image_size` is "
            f"{side}. Way out: leave `image_size` out; images are resampled to what the network takes."
        )
    sees: dict[str, Any] = {} if side == data.image_size else {"image_size": side}
    source = network.source.model_copy(update=sees)
    if is_published(source):
        sees["normalized"] = "as published"
    return replace(
        network,
        source=source,
        facts=replace(network.facts, image_size=side),
        identity={**network.identity, **sees},
    )


def is_published(source: NetworkSource) -> bool:
    """Whether the weights are those that timm publishes, which are used to their own normalisation of images."""
    return source.checkpoint is None and source.model is not None and source.model.pretrained


def _completed(spec: ModelSpec, data: DataSpec, classes: dict[str, Any]) -> ModelSpec:
    args = {**spec.args, **classes}
    if takes_image_size(spec.model):
        side = args.setdefault("img_size", data.image_size)
        if side not in (data.image_size, [data.image_size, data.image_size]):
            raise ValueError(
                f"`{spec.model}` is given `img_size: {side}`, but `data.image_size` is {data.image_size}. "
                "Way out: leave `img_size` out; it is set from the data."
            )
    return _with_channels(spec.model_copy(update={"args": args}), data)


def _with_channels(spec: ModelSpec, data: DataSpec) -> ModelSpec:
    channels = len(data.mean)
    args = dict(spec.args)
    if args.setdefault("in_chans", channels) != channels:
        raise ValueError(
            f"`{spec.model}` is given `in_chans: {args['in_chans']}`, but `data.mean` has {channels} values. "
            "Way out: leave `in_chans` out; it is set from the data."
        )
    return spec.model_copy(update={"args": args})


def from_timm(model: ModelSpec, data: DataSpec) -> Network:
    """A network from timm, its arguments complete.

    Raises:
        ValueError: if published weights do not fit the arguments.
    """
    _check_published(model)
    return Network(
        NetworkSource(model=model), model, facts_at(model, data), {"model": model.model_dump(mode="json")}, WHOLE
    )


def _check_published(model: ModelSpec) -> None:
    """Published weights fit one architecture; timm adapts only classes, channels, image and patch size.

    Raises:
        ValueError: if the arguments make another; seen for plain Vision Transformers only.
    """
    if not model.pretrained:
        return
    own, published = facts_of(model), facts_of(ModelSpec(model=model.model))
    if (own.family, published.family) != ("vit", "vit"):
        return
    changed = [name for name in _ARCHITECTURE if getattr(own, name) != getattr(published, name)]
    if changed:
        what = ", ".join(f"`{name}` {getattr(own, name)} instead of {getattr(published, name)}" for name in changed)
        raise ValueError(
            f"`{model.model}` is to start from published weights, but its `args` make another network than theirs: "
            f"{what}. Way out: leave those out of `args`, or set `pretrained: false`."
        )


def facts_at(model: ModelSpec, data: DataSpec) -> ModelFacts:
    """Facts of a network on the data's images. Networks without a size of their own take whatever comes."""
    facts = facts_of(model)
    return facts if takes_image_size(model.model) else replace(facts, image_size=data.image_size)


def from_checkpoint(path: str, model: ModelSpec | None, data: DataSpec) -> Network:
    """A network from a slimvit checkpoint folder, or from a file of timm's weights for `model`.

    Raises:
        ValueError: if there is no such checkpoint, it cannot be read, or a file comes without its model.
    """
    where = Path(path).expanduser().absolute()
    if where.is_dir():
        described, shapes, digest = _folder(where)
        source = NetworkSource(checkpoint=str(where))
        return Network(source, described, facts_at(described, data).at(shapes), {"checkpoint": digest}, shapes)
    if not where.is_file():
        raise ValueError(
            f"there is no checkpoint `{where}`. Way out: a folder with `{WEIGHTS}` and `{DESCRIPTION}`, "
            "or a `.safetensors` file of timm weights."
        )
    if model is None:
        raise ValueError(f"`{where}` is a file of weights. Way out: name its network too, as `model`.")
    # The weights are in the file; published ones need not be downloaded first.
    bare = model.model_copy(update={"pretrained": False})
    identity = {"checkpoint": _sha256(where, _stamp(where)), "model": bare.model_dump(mode="json")}
    return Network(NetworkSource(checkpoint=str(where), model=bare), bare, facts_at(bare, data), identity, WHOLE)


def _folder(folder: Path) -> tuple[ModelSpec, Shapes, str]:
    missing = [name for name in (WEIGHTS, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"`{folder}` is no slimvit checkpoint: it lacks `{missing[0]}`. Way out: the folder of a finished training "
            "stage, or a `.safetensors` file with `model`."
        )
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        model = ModelSpec.model_validate(described["model"])
        shapes = Shapes.from_json(described["shapes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{folder / DESCRIPTION}` cannot be read: {error!r}. Way out: write the checkpoint again."
        ) from error
    files = [_sha256(path, _stamp(path)) for path in (folder / DESCRIPTION, folder / WEIGHTS)]
    return model, shapes, hashlib.sha256("".join(files).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@cache
def _sha256(path: Path, stamp: tuple[int, int]) -> str:
    """Digest of a file; `stamp` makes the cache forget files that change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
