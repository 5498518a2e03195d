"""Others' numbers: read as they are, joined by network and size, kept once, and ranked with nothing of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalStore
from orchestrator.errors import StoreError, UsageError
from orchestrator.reporting.compare import compare
from orchestrator.reporting.published import import_results, load_published, published_front, with_published
from orchestrator.reporting.published_text import published_text
from orchestrator.reporting.timm_results import read_table

FOLDER = Path(__file__).parents[1] / "fixtures" / "published"
ACCURACY = FOLDER / "results-imagenet.csv"
GPU = FOLDER / "benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv"
CPU = FOLDER / "benchmark-infer-fp32-nchw-pt113-cpu-some_chip-dynamo.csv"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """A file with the rows given, under a name given."""

    def write(*rows: str, name: str = "results-imagenet.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def test_values_come_in_our_units() -> None:
    giant, small, *_ = read_table(ACCURACY).lines
    assert giant.values == {"top1": 88.0, "top5": 98.5, "params": 1_014_500_000.0}
    assert (small.architecture, small.image_size) == ("invented_small", 224)
    assert small.conditions == {"crop_pct": "0.900", "interpolation": "bicubic"}
    tiny, _, slow, _ = read_table(GPU).lines
    assert tiny.values == pytest.approx({"throughput": 17000.5, "macs": 1.25e9, "activations": 6e6, "params": 5.7e6})
    assert set(slow.values) == {"throughput", "params"}  # what is empty there is missing here
    assert tiny.conditions == {"batch_size": 512}


def test_only_a_step_at_batch_1_is_a_latency() -> None:
    assert all("latency_ms" not in line.values for line in read_table(GPU).lines)
    assert [line.values["latency_ms"] for line in read_table(CPU).lines] == [5.556, 16.667]


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        (GPU.name, {"device": "rtx4090", "precision": "amp", "torch": "2.4.0", "cuda": "12.4", "compile": "no"}),
        (CPU.name, {"device": "some_chip", "precision": "fp32", "torch": "1.13", "compile": "yes"}),
        ("benchmark-infer-amp_bf16-nchw-pt291-cu130-pro-dynamo.csv", {"precision": "amp_bf16", "torch": "2.9.1"}),
        ("my_speeds.csv", {"device": "not told by the file's name"}),
    ],
)
def test_a_benchmarks_name_tells_its_conditions(
    name: str, conditions: dict[str, str], table: Callable[..., Path]
) -> None:
    told = read_table(table(*GPU.read_text().splitlines(), name=name)).file.conditions
    assert told.items() >= conditions.items()
    assert ("cuda" in told) == ("-cu" in name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("results-imagenet.csv", "ImageNet-1k validation"),
        ("results-imagenet-a.csv", "ImageNet-A"),
        ("other.csv", "not told by the file's name"),
    ],
)
def test_an_accuracy_tables_name_tells_the_images(name: str, data: str, table: Callable[..., Path]) -> None:
    assert read_table(table(*ACCURACY.read_text().splitlines(), name=name)).file.conditions == {"data": data}


def test_joined_by_architecture_and_size(store: LocalStore) -> None:
    said = import_results([ACCURACY, GPU, CPU], "invented", store)
    assert "published/invented: 6 networks, 5 of them with a speed." in said
    kept = load_published("invented", store)
    speeds = {(p.name, p.conditions["image_size"], p.group): p.values.get("throughput") for p in kept.points}
    gpu, cpu = "rtx4090, amp, nhwc, torch 2.4.0", "some_chip, fp32, nchw, torch 1.13, compiled"
    assert speeds == {
        ("invented_tiny.good_recipe", 224, gpu): 17000.5,
        ("invented_small.good_recipe", 224, gpu): 7000.0,
        ("invented_small.old_recipe", 224, gpu): 7000.0,
        ("invented_slow.good_recipe", 224, gpu): 900.0,
        ("invented_tiny.good_recipe", 224, cpu): 180.0,
        ("invented_tiny.good_recipe", 384, cpu): 60.0,
        ("invented_giant.big_data", 560, "no timing"): None,
    }
    assert {f.sha256 for f in kept.files} == {hashlib.sha256(p.read_bytes()).hexdigest() for p in (ACCURACY, GPU, CPU)}


def test_fronts_are_of_one_group_where_the_machine_matters(store: LocalStore) -> None:
    import_results([ACCURACY, GPU, CPU], "invented", store)
    points = load_published("invented", store).points
    by_size = published_front(points, "top1", "params")
    assert {g: [(p.name, p.conditions["image_size"]) for p in f] for g, f in by_size.items()} == {
        "": [
            ("invented_tiny.good_recipe", 224),
            ("invented_tiny.good_recipe", 384),
            ("invented_small.good_recipe", 224),
            ("invented_giant.big_data", 560),
        ]
    }
    by_speed = published_front(points, "top1", "throughput")
    assert {g: [p.values["throughput"] for p in f] for g, f in by_speed.items()} == {
        "rtx4090, amp, nhwc, torch 2.4.0": [7000.0, 17000.5],
        "some_chip, fp32, nchw, torch 1.13, compiled": [60.0, 180.0],
    }


def test_importing_again_is_no_error_but_other_numbers_are(store: LocalStore, table: Callable[..., Path]) -> None:
    assert import_results([ACCURACY], "invented", store) == import_results([ACCURACY], "invented", store)
    other = table("model,img_size,top1", "invented_x,224,50.0")
    with pytest.raises(UsageError, match=r"has other numbers under the name `invented`.*--name"):
        import_results([other], "invented", store)
    assert len({p.name for p in load_published("invented", store).points}) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["model,img_size,top1", "a,224,good"], "row 2, column `top1`: `good` is no number between 0 and 100"),
        (["model,img_size,top1", "a,224,101"], "row 2, column `top1`: `101`"),
        (["model,img_size,top1", "a,224,nan"], "row 2, column `top1`: `nan`"),
        (["model,img_size,top1", "a,224,", "b,22.5,1"], "row 3, column `img_size`: `22.5` is no count"),
        (["model,img_size,top1", ",224,50"], "row 2, column `model`: is empty"),
        (["model,img_size,top1", "a,224,50,7"], "row 2: 4 values, but the header has 3 columns"),
        (["model,imgsize,top1", "a,224,50"], "row 1: the column `img_size` (there is `imgsize`) is missing"),
        (["model,img_size,top1,top1", "a,224,50,51"], "row 1: the column `top1` occurs twice"),
        (["model,img_size,top1"], "has a header but no rows"),
        (["name,size"], "neither `top1` nor `infer_samples_per_sec`"),
        (["model,train_samples_per_sec"], "benchmark of training"),
        ([""], "is empty"),
    ],
)
def test_wrong_tables_are_refused_with_row_and_column(
    rows: list[str], message: str, table: Callable[..., Path], store: LocalStore
) -> None:
    with pytest.raises(UsageError) as refused:
        import_results([ACCURACY, table(*rows, name="wrong.csv")], "invented", store)
    assert message in str(refused.value)
    assert "wrong.csv" in str(refused.value)
    assert not list(store.names("published"))  # nothing half-written


def test_all_problems_at_once(table: Callable[..., Path]) -> None:
    path = table("model,img_size,top1", *(f"m{i},224,bad" for i in range(25)))
    with pytest.raises(UsageError) as refused:
        read_table(path)
    assert str(refused.value).count("column `top1`") == 20
    assert "… and 5 more" in str(refused.value)


def test_files_that_are_no_text(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / "x.csv").write_bytes(b"model,top1\n\xff\xfe")
    with pytest.raises(UsageError, match=r"byte 11 is not UTF-8"):
        import_results([tmp_path / "x.csv"], "invented", store)
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        import_results([tmp_path / "none.csv"], "invented", store)


def test_a_network_that_occurs_twice_is_said(table: Callable[..., Path], store: LocalStore) -> None:
    path = table("model,img_size,top1", "a,224,50", "a,224,51", "a,384,52")
    said = import_results([path], "invented", store)
    assert "left out, because an earlier row has the same network and size: row 3" in said
    assert [p.values["top1"] for p in load_published("invented", store).points] == [50.0, 52.0]


def test_two_accuracy_tables_are_of_different_images(table: Callable[..., Path], store: LocalStore) -> None:
    other = table(*ACCURACY.read_text().splitlines(), name="results-sketch.csv")
    with pytest.raises(UsageError, match="are of different images"):
        import_results([ACCURACY, other], "invented", store)


def test_names_that_are_not_there(store: LocalStore) -> None:
    with pytest.raises(UsageError, match=r"no imported numbers of that name\. Import some"):
        load_published("imagenet", store)
    import_results([ACCURACY], "imagenet", store)
    with pytest.raises(UsageError, match="did you mean `imagenet`"):
        load_published("imagnet", store)
    with pytest.raises(UsageError, match=r"--name \.\./x"):
        import_results([ACCURACY], "../x", store)


def test_a_damaged_table_is_said(store: LocalStore) -> None:
    import_results([ACCURACY], "imagenet", store)
    file = store.root / "published" / "imagenet" / "table.json"
    file.chmod(0o644)
    file.write_text("{}")
    with pytest.raises(StoreError, match="import them again"):
        load_published("imagenet", store)


def test_beside_ours_and_never_ranked(finished: Any) -> None:
    import_results([ACCURACY, GPU], "invented", finished.store)
    alone = compare(finished.plan, finished.store)
    both = with_published(alone, [load_published("invented", finished.store)], finished.plan)
    assert (both.rows, both.hypervolumes, both.columns) == (alone.rows, alone.hypervolumes, alone.columns)
    assert both.notes[0].startswith("ANOTHER TASK: this experiment has 10 classes")
    assert "published by others under others' conditions" in both.notes[-1]
    text = published_text(both)
    assert text.startswith("Published by others under others' conditions, ranked with nothing above")
    assert "throughput [images/s]" in text
    tiny = next(line for line in text.splitlines() if "invented_tiny.good_recipe" in line)
    assert "1.25 G" in tiny or "1.250 G" in tiny
    assert "invented_giant" not in text  # no MACs are known of it
    assert published_text(alone) == ""


def test_the_same_number_of_classes_is_no_other_task(finished: Any) -> None:
    import_results([ACCURACY], "invented", finished.store)
    stages = {d: s.model_copy(update={"num_classes": 1000}) for d, s in finished.plan.stages.items()}
    plan = finished.plan.model_copy(update={"stages": stages})
    both = with_published(compare(finished.plan, finished.store), [load_published("invented", finished.store)], plan)
    assert not any("ANOTHER TASK" in note for note in both.notes)
