"""Whatever is written into a spec, loading it succeeds or reports problems; nothing else happens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specs.assign import NoSuchPath, assign, resolve, value_at
from specs.load import Location, Problem, SpecProblems, load, validate
from strategies import registry

LIBRARY = Path(__file__).parents[2] / "specs" / "library"
SPECS = [load(LIBRARY / name, resolver=registry.resolver).data for name in ("quickstart.yaml", "baseline/cifar10.yaml")]
SPECS.append(
    SPECS[0]
    | {
        "matrix": {"axes": {"distill": SPECS[0]["matrix"]["axes"]["distill"]}},
        "search": {
            "algorithm": "optuna",
            "trials": 4,
            "space": {
                "stages.student.training.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
                "stages.teacher.training.batch_size": {"int": [1, 64]},
                "student.args.depth": {"values": [2, 4]},
            },
            "objectives": [{"metric": "top1"}, {"metric": "macs"}],
            "scheduler": {"asha": {"grace_epochs": 2}},
        },
    }
)
CLUSTERS: list[dict[str, Any]] = [
    {"kind": "local", "name": "here", "cpus": 4, "gpus": 0, "dashboard_port": 8265},
    {"kind": "address", "address": "10.0.0.1:6379", "price_per_hour": 1.5},
    {
        "kind": "aws",
        "region": "eu-central-1",
        "availability_zones": ["eu-central-1a"],
        "worker_instance": "g5.xlarge",
        "max_workers": 4,
        "max_price": 0.5,
        "ami": "ami-0123456789abcdef0",
        "image": "registry.example.org/slimvit:1",
    },
    {
        "kind": "kubernetes",
        "image": "registry.example.org/slimvit:1",
        "max_workers": 4,
        "cpus": 8,
        "gpus": 1,
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
        "env_secrets": ["aws"],
    },
]
SECTIONS = ("search", "cluster", "storage", "tracking", "resources")
"""Of everything that is not the experiment itself."""
WHOLE = [
    SPECS[-1]
    | {
        "cluster": cluster,
        "storage": {"root": "s3://bucket/prefix", "endpoint": "https://minio.example.org:9000"},
        "tracking": {"uri": "https://mlflow.example.org", "experiment": "lab"},
        "resources": {
            "workers": {"min": 1, "max": 4},
            "cpus_per_worker": 2,
            "gpus_per_worker": 1,
            "lanes": 2,
            "max_retries": 3,
            "max_preemptions": 5,
            "stage_deadline_minutes": 90.0,
        },
    }
    for cluster in CLUSTERS
]
UNTRANSLATED = "otherwise ("
"""Part of the message for an error of pydantic that `specs.translate` has no words for."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    | st.sampled_from(["name", "response", "${HOME}", "${NO_SUCH}", "~", "stages.0", "matrix", "student", "none"])
)
keys = st.sampled_from(
    ["name", "kind", "stage", "model", "args", "strategies", "set", "path", "values", "seeds", "x.y"]
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def paths(data: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path of some data."""
    if prefix:
        yield prefix
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in entries:
        yield from paths(child, (*prefix, key))


@st.composite
def mutated(draw: st.DrawFn, specs: list[dict[str, Any]], section: str | None = None) -> dict[str, Any]:
    """A good spec with one to three values replaced, removed or added, in one section or anywhere."""
    data = copy.deepcopy(draw(st.sampled_from(specs)))
    for _ in range(draw(st.integers(1, 3))):
        inside = [path for path in paths(data) if section is None or path[0] == section]
        if not inside:
            break
        path = draw(st.sampled_from(sorted(inside, key=str)))
        parent = value_at(data, path[:-1]) if path[:-1] else data
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[path[-1]] = draw(values)
            case "remove":
                del parent[path[-1]]
            case "add" if isinstance(parent, dict):
                parent[draw(keys)] = draw(values)
            case _:
                parent.append(draw(values))
        if not data:
            break
    return data


def refused(load_it: Callable[[], object]) -> tuple[Problem, ...]:
    """Problems that loading reports; none if it succeeds. Every other exception is a failure."""
    try:
        load_it()
    except SpecProblems as error:
        return error.problems
    return ()


def found_in(data: dict[str, Any]) -> tuple[Problem, ...]:
    """Problems of a spec, each with a message and a place."""
    place = Location("spec.yaml", 1)
    problems = refused(lambda: validate(data, registry.resolver, lambda path: place))
    assert all(p.message and UNTRANSLATED not in p.message and p.file == "spec.yaml" for p in problems)
    return problems


@pytest.mark.parametrize("data", SPECS + WHOLE)
def test_what_is_mutated_is_valid(data: dict[str, Any]) -> None:
    assert found_in(data) == ()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(SPECS))
def test_mutated_specs_are_valid_or_have_located_problems(data: dict[str, Any]) -> None:
    found_in(data)


@pytest.mark.parametrize("section", SECTIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_sections_are_valid_or_have_located_problems(section: str, data: st.DataObject) -> None:
    spec = data.draw(mutated(WHOLE, section))
    found_in(spec)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, 2500), junk=st.text(max_size=6) | st.sampled_from(["\t", "{", "[", ": ", "- ", "&a", "*a"])
)
def test_mutated_text_is_valid_or_has_located_problems(tmp_path: Path, position: int, junk: str) -> None:
    text = (LIBRARY / "quickstart.yaml").read_text()
    path = tmp_path / "spec.yaml"
    path.write_text(text[:position] + junk + text[position:], encoding="utf-8", errors="surrogatepass")
    problems = refused(lambda: load(path, resolver=registry.resolver))
    assert all(p.message and UNTRANSLATED not in p.message and p.file == str(path) for p in problems)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("stages.0123student.args.x"), max_size=20), values)
def test_assign_gives_a_new_spec_or_says_why_not(path: str, value: Any) -> None:
    before = copy.deepcopy(SPECS[0])
    try:
        target = resolve(SPECS[0], path)
    except NoSuchPath:
        with pytest.raises(NoSuchPath, match=r"`"):
            assign(SPECS[0], path, value)
    else:
        assert value_at(assign(SPECS[0], path, value), target) == value
    assert before == SPECS[0], "the original is never touched"
