"""gc, store ls, store verify, store delete: on stores of both kinds, with plans that runs left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.lease import Record
from cluster.local import LocalStore
from cluster.process import Process
from cluster.storage import ArtifactStore, Kept
from orchestrator.errors import UsageError
from orchestrator.keeping.collect import collect
from orchestrator.keeping.inspect import StoreDamaged, remove, show, verify
from orchestrator.keeping.reach import Policy, Roots, doomed
from orchestrator.planning.plan import Plan, SearchPlan
from orchestrator.run import commit_plan
from tests.cluster.conftest import address, endpoint, store
from tests.cluster.test_store import folder
from tests.execution.plans import digest, experiment, plan, train

__all__ = ["address", "endpoint", "store"]
OLD, DAY = 10 * 86_400.0, 86_400.0
A, SHARED, B, LOOSE = (digest(f"steps={i}") for i in range(4))


def made(name: str, *labels: str) -> Plan:
    return plan(*(train(label) for label in labels)).model_copy(update={"experiment": name})


def roots(**plans: Plan) -> Roots:
    return Roots({name: (each,) for name, each in plans.items()}, frozenset({"records/kept"}))


def gone(artefacts: dict[str, float], kept: Roots, leased: frozenset[str] = frozenset(), **policy: object) -> set[str]:
    found = tuple(Kept(name, 1, age) for name, age in artefacts.items())
    return {each.kept.name for each in doomed(found, (), kept, leased, Policy(**policy))}  # type: ignore[arg-type]


def test_what_goes() -> None:
    found = SearchPlan(digest="mine", algorithm="random", space={}, num_trials=2, proposed=1, judged=0)
    kept = roots(one=made("one", "steps=0", "steps=1").model_copy(update={"search": found}))
    artefacts = dict.fromkeys(
        [
            f"stages/{A}",
            f"stages/{LOOSE}",
            f"progress/{A}/1",
            f"progress/{SHARED}/1",
            f"progress/{B}/1",
            f"answers/{LOOSE}/0",
            f"failures/{A}",
            f"failures/{LOOSE}",
            "searches/mine/trials/00000",
            "searches/other/trials/00000",
            "plans/one/x",
            "plans/two/x",
            "published/imagenet",
            "records/kept",
            "records/other",
        ],
        OLD,
    )
    loose = {f"stages/{LOOSE}", f"progress/{B}/1", f"answers/{LOOSE}/0", "plans/two/x", "records/other"}
    loose |= {f"failures/{LOOSE}", "searches/other/trials/00000"}
    finished = {f"progress/{A}/1"}
    assert gone(artefacts, kept) == loose | finished
    assert gone(artefacts, kept, progress=True) == loose - {f"progress/{B}/1"} | finished
    assert gone(artefacts, kept, days=11.0) == set()
    assert gone(artefacts | {f"stages/{LOOSE}": 0.5 * DAY}, kept) == (loose | finished) - {f"stages/{LOOSE}"}
    leased = frozenset({f"stages/{LOOSE}"})
    its_own = {f"{kind}/{LOOSE}" for kind in ("stages", "failures")} | {f"answers/{LOOSE}/0"}
    assert gone(artefacts, kept, leased) == (loose | finished) - its_own


def test_leftovers_go_after_a_day_at_the_earliest() -> None:
    leftovers = (Kept(".incoming-a", 1, 0.5 * DAY), Kept(".incoming-b", 1, 2 * DAY))
    found = doomed((), leftovers, roots(), frozenset(), Policy(days=0.0))
    assert [each.kept.name for each in found] == [".incoming-b"]


@pytest.fixture
def filled(store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """Two experiments that share a stage, and a stage that nobody needs."""
    commit_plan(made("one", "steps=0", "steps=1"), experiment(), store)
    commit_plan(made("two", "steps=1", "steps=2"), experiment(), store)
    for i, name in enumerate((A, SHARED, B, LOOSE)):
        store.commit(f"stages/{name}", folder(tmp_path / str(i), result="r" * 1000 * (i + 1)))
    return store


@pytest.fixture
def said() -> list[str]:
    return []


def stages(store: ArtifactStore) -> set[str]:
    return {name.removeprefix("stages/") for name in store.names("stages")}


def test_gc_shows_first_and_deletes_when_told_to(filled: ArtifactStore, said: list[str]) -> None:
    collect(["one"], ["0d"], filled.location, delete=False, say=said.append)
    text = "\n".join(said)
    assert stages(filled) == {A, SHARED, B, LOOSE}, "a dry run"
    assert "Nothing is deleted yet" in text
    assert f"stages/{LOOSE}" in text
    assert f"stages/{SHARED}" not in text
    collect(["one"], ["0d"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {A, SHARED}
    assert [name.split("/")[1] for name in filled.names("plans")] == ["one"]


def test_gc_keeps_all_experiments_unless_some_are_named(filled: ArtifactStore, said: list[str]) -> None:
    collect([], ["0d"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {A, SHARED, B}
    collect([], ["two", "0d"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {SHARED, B}


def test_gc_leaves_what_is_young_or_leased(filled: ArtifactStore, said: list[str]) -> None:
    collect(["one"], [], filled.location, delete=True, say=said.append)
    assert stages(filled) == {A, SHARED, B, LOOSE}
    elsewhere = Process("far", "another machine", 1, 1)
    filled.register().write(f"stages/{LOOSE}", Record("run", elsewhere, 0.0, 1), None)
    collect(["one"], ["0d"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {A, SHARED, LOOSE}
    with pytest.raises(UsageError, match="a run is at"):
        remove(filled, [f"stages/{LOOSE}"], say=said.append)


def test_gc_counts_earlier_plans_only_if_asked(filled: ArtifactStore, said: list[str]) -> None:
    commit_plan(made("one", "steps=1"), experiment(), filled)
    collect(["one"], ["0d", "history"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {A, SHARED}
    collect(["one"], ["0d"], filled.location, delete=True, say=said.append)
    assert stages(filled) == {SHARED}


def test_gc_refuses_words_it_does_not_know(filled: ArtifactStore, said: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--keep progres: did you mean `progress`"):
        collect([], ["progres"], filled.location, delete=True, say=said.append)


def test_ls(filled: ArtifactStore, said: list[str]) -> None:
    show(filled, everything=True, say=said.append)
    text = "\n".join(said)
    assert any(line.split()[:2] == ["stages", "4"] for line in said)
    assert f"stages/{SHARED}  one, two" in text
    assert f"stages/{LOOSE}  -" in text


def test_verify_and_the_way_out(store: ArtifactStore, tmp_path: Path, said: list[str]) -> None:
    if not isinstance(store, LocalStore):
        pytest.skip("damage in a bucket: tests/cluster/test_s3_errors.py")
    for name in (A, B):
        store.commit(f"stages/{name}", folder(tmp_path / name[:4], weights="w" * 100))
    verify(store, say=said.append)
    assert said.pop() == "2 artefacts are sound."
    damaged = store.root / "stages" / B / "weights"
    damaged.write_text("w" * 99 + "v")
    with pytest.raises(StoreDamaged, match=rf"1 of 2 artefacts.*slimvit store delete stages/{B} ") as caught:
        verify(store, say=said.append)
    assert caught.value.exit_code == 1
    assert any("has SHA-256" in line for line in said)
    remove(store, [f"stages/{B}", "stages/nothing"], say=said.append)
    assert said[-1] == "stages/nothing was not there"
    verify(store, say=said.append)
    assert said[-1] == "1 artefact is sound."


def test_leftovers_of_killed_writers(tmp_path: Path, said: list[str]) -> None:
    store = LocalStore(tmp_path / "store")
    store.prepare()
    left = store.root / "stages" / ".incoming-x"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"w" * 5000)
    for path in (left / "weights", left):
        os.utime(path, (0, 0))
    collect([], [], store.location, delete=True, say=said.append)
    assert not left.exists()
    assert any("left by a writer that was killed" in line for line in said)
