"""A combination's network as files that other programs load, checked against the original on real images.

    safetensors   weights and `model.json`; every network; loaded with slimvit's `load_network`
    torchscript   a traced program; loaded with torch alone
    onnx          for onnxruntime and what else reads ONNX
    pt2           a `torch.export` program; loaded with torch alone

A trace holds one path through the network. Where the path depends on the image (an exit taken on confidence), a traced
file would be wrong for most images, so such a network goes into safetensors alone.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.storage import ArtifactStore
from orchestrator.errors import SlimvitError, StoreError, UsageError
from orchestrator.measurement.compute import static_macs
from orchestrator.measurement.images import validation_images
from orchestrator.measurement.network import load_deployed
from orchestrator.planning.plan import Combination, Plan
from orchestrator.reporting.find import combinations_named, find_plan
from orchestrator.training.checkpoint import load_network, read_network, save_network
from orchestrator.training.sources import open_images
from specs.data import DataSpec
from specs.problems import listed
from strategies.backbone import Student

FILES = {"safetensors": "model.safetensors", "torchscript": "model.pt", "onnx": "model.onnx", "pt2": "model.pt2"}
NUM_IMAGES = 64
"""Real images that the exported network is checked on."""
MIN_AGREEMENT = 0.99
"""Share of images on which original and export must name the same class; rounding may flip a tie."""
EXAMPLE_BATCH = 2
"""Images that are traced; not 1, which tracers take for a constant."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """How the file's answers compare with the network's."""

    num_images: int
    max_logit_difference: float
    """Largest absolute difference of two logits."""
    largest_logit: float
    """Largest absolute logit of the original, to compare with."""
    top1_agreement: float
    """Share of the images with the same first answer."""


@dataclass(frozen=True)
class Exported:
    """What was written; prints as what a person wants to know."""

    folder: Path
    file: Path
    check: Check

    def __str__(self) -> str:
        c = self.check
        return (
            f"{self.file}\n"
            f"checked on {c.num_images} validation images: same first answer on {c.top1_agreement:.1%}, "
            f"largest difference of a logit {c.max_logit_difference:.2g} (largest logit {c.largest_logit:.3g})"
        )


class Logits(nn.Module):
    """The network's answer alone: images [B, C, side, side] → logits [B, classes]."""

    def __init__(self, network: Student) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.network(images).logits
        return logits


def export_combination(
    experiment: str,
    combination: str,
    output_format: str,
    *,
    out: Path | None = None,
    store: str | Path | None = None,
    assignments: Sequence[str] = (),
) -> Exported:
    """Write the network of a finished combination; of several seeds, the one with the best top-1.

    Args:
        experiment: a spec file, or the name of an experiment in the store.
        output_format: a key of `FILES`.
        out: folder to write, which must not exist yet; `None` = one named after the combination and the format.
        store: the artefact store, if no spec names it.
        assignments: `PATH=VALUE` each, for a spec file.

    Raises:
        UsageError: if there is no such combination or format, it is not trained, the folder exists, or the format
            cannot hold the network.
        StoreError: if its artefact is damaged.
    """
    found = find_plan(experiment, store, assignments)
    chosen, artefact = best_seed(found.plan, found.store, combination)
    stage = found.plan.stages[chosen.result]
    name = re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{found.plan.experiment}-{chosen.name}-{output_format}")
    return export_network(artefact, stage.data, output_format, out or Path(name))


def best_seed(plan: Plan, store: ArtifactStore, name: str) -> tuple[Combination, Path]:
    """The finished combination of this name with the best top-1, and the folder of its network."""
    finished = []
    for combination in combinations_named(plan, name):
        artefact = f"stages/{combination.result}"
        if store.committed(artefact):
            try:
                folder = store.fetch(artefact)
                metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
            except KeyError as error:
                raise StoreError(
                    f"`{folder / 'result.json'}` lacks {error}. Delete `{folder}`; `slimvit run` computes it anew."
                ) from error
            except (OSError, ValueError) as error:
                raise StoreError(str(error)) from error
            finished.append((metrics.get("val_top1", 0.0), combination, folder))
    if not finished:
        raise UsageError(
            f"`{name}` is not trained yet in the store {store}. Run the spec first (`slimvit run`), or name another "
            "store with `--store`."
        )
    _, best, folder = max(finished, key=lambda entry: entry[0])
    return best, folder


def export_network(artefact: Path, data: DataSpec, output_format: str, out: Path) -> Exported:
    """Write the network of a training stage's artefact into a new folder.

    Args:
        data: the images it was trained on; the export is checked on the validation split.

    Raises:
        UsageError, StoreError, DataError: see `export_combination`.
    """
    if output_format not in FILES:
        raise UsageError(f"there is no format `{output_format}`; formats: {listed(FILES)}")
    if out.exists():
        raise UsageError(f"{out} exists already; name another folder with `--out`, or remove it")
    network = load_deployed(artefact).network
    images = validation_images(data, NUM_IMAGES)
    if output_format != "safetensors" and static_macs(network, tuple(images.shape[1:])) is None:  # type: ignore[arg-type]  # three sizes
        raise UsageError(
            f"`{output_format}` cannot hold this network: which part of it runs depends on the image, and a traced "
            "file holds one path. Export it as safetensors, or train it without the strategy that decides (exits)."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        path = folder / FILES[output_format]
        run = WRITERS[output_format](network, artefact, path, images[:EXAMPLE_BATCH])
        check = compare(network, run, images)
        if check.top1_agreement < MIN_AGREEMENT:
            raise SlimvitError(
                f"the {output_format} file was not kept: it names another class than the network on "
                f"{1 - check.top1_agreement:.1%} of {check.num_images} validation images; export as safetensors instead"
            )
        _describe(folder, output_format, data, images, check)
        shutil.move(folder, out)
    return Exported(out, out / FILES[output_format], check)


@torch.no_grad()
def compare(network: Student, run: Run, images: Tensor) -> Check:
    """Answers of the export beside the original's, at batch 1 and at a larger batch."""
    expected = network(images).logits
    found = torch.cat([run(images[:1]), run(images[1:])] if len(images) > 1 else [run(images)])
    return Check(
        num_images=len(images),
        max_logit_difference=float((found - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        top1_agreement=float((found.argmax(1) == expected.argmax(1)).float().mean()),
    )


def _safetensors(network: Student, artefact: Path, path: Path, example: Tensor) -> Run:
    saved = read_network(artefact)
    lasting = [c for c in saved.strategies if any(s.config == c for s in load_deployed(artefact).strategies)]
    save_network(path.parent, network, saved.model, lasting, saved.num_classes, saved.teachers)
    return Logits(load_network(path.parent))


def _torchscript(network: Student, artefact: Path, path: Path, example: Tensor) -> Run:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that become constants, whose effect `compare` looks at
        torch.jit.save(torch.jit.trace(Logits(network), example), path)
        run: Run = torch.jit.load(path)
    return run


def _pt2(network: Student, artefact: Path, path: Path, example: Tensor) -> Run:
    torch.export.save(_program(network, example), path)
    run: Run = torch.export.load(path).module()
    return run


def _onnx(network: Student, artefact: Path, path: Path, example: Tensor) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch's exporter writes with
    except ImportError as error:
        raise UsageError(f"ONNX needs more packages ({error}): pip install 'slimvit[export]'") from error
    program = torch.onnx.export(
        _program(network, example),
        input_names=["images"],
        output_names=["logits"],
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        verbose=False,
    )
    assert program is not None, "torch's exporter returns its program"
    program.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _stable_sort(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """torch's stable sort in ONNX, whose exporter lacks it: TopK of everything, which puts equal values in order."""
    from onnxscript import opset18

    op: Any = opset18  # its annotations know symbolic values only
    size = op.Slice(op.Shape(self), starts=[dim], ends=[dim + 1 or 2**31], axes=[0])
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _program(network: Student, example: Tensor) -> Any:
    """The network as one graph, for batches of any size."""
    with torch.no_grad():
        return torch.export.export(
            Logits(network).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )


WRITERS: dict[str, Callable[[Student, Path, Path, Tensor], Run]] = {
    "safetensors": _safetensors,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "pt2": _pt2,
}

LOADING = {
    "safetensors": "from pathlib import Path\n\nfrom orchestrator.training.checkpoint import load_network\n\n"
    "network = load_network(Path('.'))\nlogits = network(images).logits",
    "torchscript": "import torch\n\nnetwork = torch.jit.load('model.pt')\nlogits = network(images)",
    "pt2": "import torch\n\nnetwork = torch.export.load('model.pt2').module()\nlogits = network(images)",
    "onnx": "import onnxruntime\n\nsession = onnxruntime.InferenceSession('model.onnx')\n"
    "logits = session.run(['logits'], {'images': images})[0]",
}


def _describe(folder: Path, output_format: str, data: DataSpec, images: Tensor, check: Check) -> None:
    """Write `export.json` (input, classes, check) and a README on loading."""
    preparation = data.model_dump(mode="json", include={"image_size", "crop_pct", "interpolation", "mean", "std"})
    about = {
        "format": output_format,
        "input": {"shape": ["batch", *images.shape[1:]], "dtype": "float32", **preparation},
        "classes": list(open_images(data, "val").classes),
        "check": asdict(check),
    }
    (folder / "export.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    readme = (
        f"# {FILES[output_format]}\n\n"
        f"A Vision Transformer, written by `slimvit export`. `export.json` says how images are prepared (resized to "
        f"`image_size / crop_pct`, centre-cropped, scaled to [0, 1], normalised by `mean` and `std`), which classes "
        f"the logits stand for, and how the file compared with the original network.\n\n"
        f"```python\n{LOADING[output_format]}\n```\n"
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
