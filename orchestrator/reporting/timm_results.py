"""timm's tables of results, read: accuracy (`results-*.csv`) and inference benchmarks (`benchmark-infer-*.csv`).

The columns are those of the files that timm keeps in its folder `results/`; `docs/published-results.md` lists them. A
table's kind is told by its columns, its conditions by its file's name, as far as the name tells them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from orchestrator.errors import UsageError
from orchestrator.reporting.comparison import PublishedFile
from specs.problems import nearest

Kind = Literal["accuracy", "timing"]

MILLION = 1e6
UNTOLD = "not told by the file's name"

_TOLD_BY: dict[str, Kind] = {"top1": "accuracy", "infer_samples_per_sec": "timing"}
"""Column that makes a table one of this kind."""

_SIZE = {"accuracy": "img_size", "timing": "infer_img_size"}

_NUMBERS: dict[Kind, dict[str, tuple[str, float]]] = {
    "accuracy": {"top1": ("top1", 1), "top5": ("top5", 1), "param_count": ("params", MILLION)},
    "timing": {
        "infer_samples_per_sec": ("throughput", 1),
        "infer_gmacs": ("macs", 1000 * MILLION),
        "infer_macts": ("activations", MILLION),
        "param_count": ("params", MILLION),
    },
}
"""Their column → our metric, and the factor to our unit."""

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "accuracy": ("model", "img_size", "top1"),
    "timing": ("model", "infer_img_size", "infer_batch_size", "infer_samples_per_sec"),
}

_DATA = {
    "imagenet": "ImageNet-1k validation",
    "imagenet-real": "ImageNet-1k validation, ReaL labels",
    "imagenetv2-matched-frequency": "ImageNetV2 matched frequency",
    "inv2-matched-frequency": "ImageNetV2 matched frequency",
    "sketch": "ImageNet-Sketch",
    "imagenet-a": "ImageNet-A",
    "imagenet-a-clean": "ImageNet-1k validation, the classes of ImageNet-A",
    "imagenet-r": "ImageNet-R",
    "imagenet-r-clean": "ImageNet-1k validation, the classes of ImageNet-R",
}
"""What follows `results-` in a file's name → the images."""

_BENCHMARK = re.compile(
    r"benchmark-infer-(?P<precision>\w+)-(?P<layout>nchw|nhwc)-pt(?P<torch>\d{3,})-(?P<platform>cu\d{2,}|cpu)"
    r"-(?P<device>.+?)(?P<compiled>-dynamo)?"
)

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Line:
    """One network of a table."""

    number: int
    """Line of the file; the header is line 1."""
    model: str
    image_size: int
    values: dict[str, float]
    """Metric → value, in our units."""
    conditions: dict[str, JsonValue]
    """Crop and interpolation, or batch size."""

    @property
    def architecture(self) -> str:
        """timm's name without the tag of the weights: what a benchmark calls it."""
        return self.model.split(".")[0]


@dataclass(frozen=True)
class Table:
    """One file."""

    kind: Kind
    file: PublishedFile
    lines: tuple[Line, ...]
    repeated: tuple[int, ...]
    """Lines left out, because an earlier one has the same network at the same size."""


def read_table(path: Path) -> Table:
    """Read one of timm's tables.

    Raises:
        UsageError: if the file cannot be read, is none of these tables, or a value is wrong; with row and column.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is no table: byte {error.start} is not UTF-8 text") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        records = [(reader.line_num, record) for record in reader if any(field.strip() for field in record)]
    except csv.Error as error:
        raise UsageError(f"`{path}`, row {reader.line_num}: {error}") from error
    if not records:
        raise UsageError(f"`{path}` is empty; expected one of timm's tables")
    header = [field.strip() for field in records[0][1]]
    kind = _kind(path, header)
    problems: list[str] = []
    lines = [_line(kind, header, number, record, problems) for number, record in records[1:]]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = problems[:_SHOWN_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])
        raise UsageError(f"`{path}` cannot be imported:\n" + "\n".join(f"  {problem}" for problem in shown))
    if not lines:
        raise UsageError(f"`{path}` has a header but no rows; there is nothing to import")
    kept, repeated = _once([line for line in lines if line is not None])
    file = PublishedFile(
        file=path.name, sha256=hashlib.sha256(content).hexdigest(), conditions=_conditions(kind, path.name)
    )
    return Table(kind, file, kept, repeated)


def _kind(path: Path, header: list[str]) -> Kind:
    told = [kind for column, kind in _TOLD_BY.items() if column in header]
    if len(told) != 1:
        reason = "has neither `top1` nor `infer_samples_per_sec` among its columns" if not told else "has both"
        if "train_samples_per_sec" in header:
            reason = "is a benchmark of training, which says nothing of the network in use"
        raise UsageError(
            f"`{path}` {reason}. timm's `results-*.csv` (accuracy) and `benchmark-infer-*.csv` (speed) can be imported."
        )
    kind = told[0]
    missing = [column for column in _NEEDED[kind] if column not in header]
    if missing:
        near = {column: nearest(column, header) for column in missing}
        hints = [f"`{column}`" + (f" (there is `{near[column]}`)" if near[column] else "") for column in missing]
        raise UsageError(f"`{path}`, row 1: the column {', '.join(hints)} is missing")
    twice = sorted({column for column in header if header.count(column) > 1 and column in _NEEDED[kind]})
    if twice:
        raise UsageError(f"`{path}`, row 1: the column `{twice[0]}` occurs twice")
    return kind


def _line(kind: Kind, header: list[str], number: int, record: list[str], problems: list[str]) -> Line | None:
    """The network of one row; `None` after what is wrong with it was added to the problems."""
    if len(record) != len(header):
        problems.append(f"row {number}: {len(record)} values, but the header has {len(header)} columns")
        return None
    fields = dict(zip(header, (field.strip() for field in record), strict=True))
    before = len(problems)

    def read(column: str, *, highest: float = float("inf")) -> float | None:
        text = fields.get(column, "")
        if not text and column not in _NEEDED[kind]:
            return None
        value = _number(text)
        if value is None or not 0 <= value <= highest:
            limits = f"between 0 and {highest:g}" if highest < float("inf") else "that is not negative"
            problems.append(f"row {number}, column `{column}`: `{text}` is no number {limits}")
            return None
        return value

    def count(column: str) -> int:
        value = read(column)
        if value is not None and (value != int(value) or value < 1):
            problems.append(f"row {number}, column `{column}`: `{fields[column]}` is no count of at least 1")
        return int(value or 0)

    if not fields["model"]:
        problems.append(f"row {number}, column `model`: is empty")
    size = count(_SIZE[kind])
    values = {
        metric: value * factor
        for column, (metric, factor) in _NUMBERS[kind].items()
        if (value := read(column, highest=100 if metric in ("top1", "top5") else float("inf"))) is not None
    }
    conditions: dict[str, JsonValue]
    if kind == "accuracy":
        conditions = {key: fields[key] for key in ("crop_pct", "interpolation") if fields.get(key)}
    else:
        conditions = {"batch_size": count("infer_batch_size")}
        step = read("infer_step_time")
        if conditions["batch_size"] == 1 and step is not None:
            values["latency_ms"] = step  # of a whole batch: an image's latency at batch 1 alone
    return Line(number, fields["model"], size, values, conditions) if len(problems) == before else None


def _number(text: str) -> float | None:
    """A finite number, with or without commas between thousands; `None` for anything else."""
    plain = re.sub(r",(?=\d{3}(\D|$))", "", text)
    return float(plain) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", plain) else None


def _once(lines: Iterable[Line]) -> tuple[tuple[Line, ...], tuple[int, ...]]:
    """The first line of each network and size, and the numbers of those that repeat one."""
    kept: dict[tuple[str, int], Line] = {}
    repeated = []
    for line in lines:
        if kept.setdefault((line.model, line.image_size), line) is not line:
            repeated.append(line.number)
    return tuple(kept.values()), tuple(repeated)


def _conditions(kind: Kind, name: str) -> dict[str, str]:
    stem = name.removesuffix(".csv")
    if kind == "accuracy":
        return {"data": _DATA.get(stem.removeprefix("results-"), UNTOLD) if stem.startswith("results-") else UNTOLD}
    match = _BENCHMARK.fullmatch(stem)
    if match is None:
        return {"device": UNTOLD}
    return _hardware(match.groupdict())


def _hardware(told: Mapping[str, str | None]) -> dict[str, str]:
    digits = told["torch"] or ""
    # pt110 is 1.10, pt240 is 2.4.0: before version 2 the names had no digit for the patch.
    torch = f"1.{digits[1:]}" if digits.startswith("1") else ".".join((digits[0], digits[1:-1], digits[-1]))
    conditions = {
        "device": told["device"] or UNTOLD,
        "precision": told["precision"] or UNTOLD,
        "memory_format": told["layout"] or UNTOLD,
        "torch": torch,
    }
    cuda = (told["platform"] or "").removeprefix("cu")
    if cuda.isdigit():
        conditions["cuda"] = f"{cuda[:-1]}.{cuda[-1]}"
    return conditions | {"compile": "yes" if told["compiled"] else "no"}
