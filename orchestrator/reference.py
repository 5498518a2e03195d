"""Write `docs/spec-reference.md` from the docstrings of the spec's fields.

    python -m orchestrator.reference docs/spec-reference.md

Only the built-in strategies are described, so that the file does not depend on what else is installed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from orchestrator.describe_options import options
from orchestrator.strategy_help import spec_to_copy
from specs.cluster import AddressCluster, AwsCluster, KubernetesCluster, LocalCluster, Toleration
from specs.data import ImageFolder, Sample, Torchvision
from specs.experiment import Experiment, StageSpec, StorageSpec, TrackingSpec
from specs.matrix import Axis, MatrixSpec
from specs.measurement import MeasurementSpec
from specs.model import FurtherTeacherSpec, InitSpec, ModelSpec, StoredSpec, TeacherSpec
from specs.resources import ElasticWorkers, ResourcesSpec
from specs.search import AshaSpec, Dimension, Objective, SchedulerSpec, SearchSpec
from specs.training import AugmentationSpec, OptimizerSpec, ScheduleSpec, TrainingSpec
from strategies import registry

INTRODUCTION = """\
# The spec, field by field

Written by `make docs` from the docstrings of the fields; do not edit. `slimvit schema` prints the same as a JSON
Schema for editors, `slimvit strategies NAME` the options of any installed strategy. Examples: `specs/library/`.

## How a spec is read

A spec is one YAML file. Unknown keys are errors, and so are values of the wrong type: `"3"` is no number, `3.5` no
whole number. The YAML is version 1.2: `1e-3` is a number, `yes` and `on` are text, a key may occur once. Anchors and
aliases work; `<<` does not. All problems are reported at once, each with its file and line; the exit code is 2.

**`extends`** names another spec, or a list of specs, relative to the file; the file says only what differs. Later specs
win over earlier ones, and the file wins over all of them.

* Mappings merge key by key at every depth. Where both name a `kind` and the kinds differ, the new mapping replaces the
  old one.
* `stages` merge by `name`. A new stage is put before the next stage that both have, or at the end.
* Every other list, and every single value, is replaced. `null` replaces too.
* `!replace` before a mapping or list replaces instead of merging: `axes: !replace {seed: {seeds: [0, 1]}}`.

**`--set PATH=VALUE`** overrides one value after that. A path is made of keys, and in lists of indices or the entries'
names: `stages.0.training.epochs=3`, `stages.student.strategies.response.alpha=0.9`. VALUE is YAML. Axes of the matrix
use the same paths.

**`~` and `${VARIABLE}`** are filled in where a field holds a path or an address (`data.root`, `storage.root`,
`tracking.uri`, `checkpoint`, `cluster.ssh_private_key`). A variable that is not set is an error.
"""

SECTIONS: tuple[tuple[str, str, tuple[type[BaseModel], ...]], ...] = (
    ("Experiment", "The top of the file.", (Experiment,)),
    ("Data", "`data`: one of three kinds.", (ImageFolder, Torchvision, Sample)),
    (
        "Networks",
        "`student`, `teacher`, and a stage's `model` and `init`.",
        (ModelSpec, TeacherSpec, FurtherTeacherSpec, StoredSpec, InitSpec),
    ),
    ("Stages", "`stages`: a list.", (StageSpec,)),
    (
        "Training",
        "`training` of a stage.",
        (TrainingSpec, OptimizerSpec, ScheduleSpec, AugmentationSpec),
    ),
    ("Matrix", "`matrix`: what is compared.", (MatrixSpec, Axis)),
    (
        "Search",
        "`search`: combinations that are proposed instead of written out; see `docs/search.md`.",
        (SearchSpec, Dimension, Objective, SchedulerSpec, AshaSpec),
    ),
    ("Measurement", "`measurement`.", (MeasurementSpec,)),
    ("Resources", "`resources`.", (ResourcesSpec, ElasticWorkers)),
    (
        "Cluster",
        "`cluster`: one of four kinds. See `docs/clusters.md`.",
        (LocalCluster, AddressCluster, AwsCluster, KubernetesCluster, Toleration),
    ),
    ("Storage and tracking", "`storage` and `tracking`.", (StorageSpec, TrackingSpec)),
)


def reference() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    for title, text, models in SECTIONS:
        parts.append(f"## {title}\n\n{text}\n")
        parts += [f"### {model.__name__}\n\n{_text(model)}\n\n{_table(model)}\n" for model in models]
    parts.append("## Strategies\n\nEntries of a `strategies` list. Each has a `name`; the rest are its options.\n")
    parts += _strategies()
    return "\n".join(parts)


def _strategies() -> Iterator[str]:
    for name in registry.builtin_names():
        strategy = registry.load(name)
        yield (
            f"### {name}\n\n{_text(strategy)}\n\n{strategy.kind}; {strategy.paper}.\n\n"
            f"{_table(strategy.Config)}\n\n```yaml\n{spec_to_copy(name)}\n```\n"
        )


def _table(model: type[BaseModel]) -> str:
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for option in options(model):
        default = option.default if option.default == "required" else f"`{option.default}`"
        rows.append(f"| `{option.name}` | {_linked(option.type)} | {_cell(default)} | {_cell(option.meaning)} |")
    return "\n".join(rows)


def _linked(words: str) -> str:
    """Names of options types as links to their sections."""
    described = {model.__name__ for _, _, models in SECTIONS for model in models}
    for name in described:
        words = words.replace(f"[{name}]", f"[{name}](#{name.lower()})")
    return _cell(words.replace("[AnyStrategy]", "[strategy](#strategies)"))


def _text(described: type) -> str:
    return inspect.getdoc(described) or ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
