"""`slimvit gc`: delete what no named experiment reaches. Shows first, deletes only when told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from cluster.lease import TTL_S, Entry
from cluster.storage import ArtifactStore
from orchestrator.errors import UsageError
from orchestrator.keeping.reach import Doomed, Policy, doomed
from orchestrator.keeping.roots import EMPTY, roots_of, store_of
from orchestrator.planning.stored import shown_bytes
from orchestrator.reporting.find import experiments
from specs.problems import nearest
from specs.words import counted

_DAYS = re.compile(r"(\d+(?:\.\d+)?)d")
SHOWN = 40
"""Artefacts that are listed; of more, the largest."""


def collect(
    specs: Sequence[str],
    keep: Sequence[str],
    place: str | None,
    *,
    delete: bool,
    say: Callable[[str], None],
) -> None:
    """Show what goes, and delete it if told to.

    Args:
        specs: spec files, or names of experiments, whose results stay; none = all experiments in the store.
        keep: further names of experiments; `progress`, `history`, `DAYSd`.
        place: the store; `None` = the specs'.
        delete: do it.
        say: prints a line.

    Raises:
        UsageError: if a word of `keep` is unknown.
        StoreError, StoreUnavailable: if the store cannot be read or written.
    """
    store = store_of(specs, place)
    names, policy, history = _kept(keep, experiments(store))
    roots = roots_of([*specs, *names], store, history=history)
    inventory = store.inventory()
    found = doomed(inventory.artefacts, inventory.leftovers, roots, leased(store), policy)
    total = sum(kept.size for kept in (*inventory.artefacts, *inventory.leftovers))
    say(f"Store {store.location}: {shown_bytes(total)} in {counted(len(inventory.artefacts), 'artefact')}")
    if not inventory.artefacts and not inventory.leftovers:
        say(EMPTY)
        return
    needed_by = ", ".join(sorted(roots.plans)) or "nobody"
    say(f"To stay: what {needed_by} needs, and what is younger than {_days(policy.days)}")
    size = sum(each.kept.size for each in found)
    for line in _lines(found):
        say(line)
    if not found:
        say("Nothing to delete.")
    elif not delete:
        say(f"{len(found)} would be deleted, {shown_bytes(size)}. Nothing is deleted yet; add --delete to do it.")
    else:
        busy = leased(store)  # runs may have begun since
        for each in found:
            if f"stages/{_digest(each)}" not in busy:
                store.discard(each.kept.name) if each.leftover else store.delete(each.kept.name)
        _forget_leases(store)
        say(f"Deleted {len(found)}, {shown_bytes(size)}.")


def leased(store: ArtifactStore) -> frozenset[str]:
    """Names of the stages' artefacts that runs are at."""
    register = store.register()
    entries = {name: register.read(name) for name in register.names()}
    return frozenset(name for name, entry in entries.items() if entry is not None and _held(entry))


def _held(entry: Entry) -> bool:
    """Whether anybody may still be at it; of one that cannot be read, nobody knows."""
    return entry.record is None or not (entry.record.released or entry.record.process.gone())


def _kept(words: Iterable[str], known: Sequence[str]) -> tuple[list[str], Policy, bool]:
    names, days, progress, history = [], Policy.days, False, False
    for word in words:
        if match := _DAYS.fullmatch(word):
            days = float(match[1])
        elif word == "progress":
            progress = True
        elif word == "history":
            history = True
        elif word in known:
            names.append(word)
        else:
            near = nearest(word, [*known, "progress", "history"])
            raise UsageError(
                f"--keep {word}: "
                + (f"did you mean `{near}`? " if near else "")
                + "It takes the name of an experiment in the store, `progress` (of unfinished stages), `history` "
                f"(earlier plans) or days like `7d`. Experiments: {', '.join(known) or 'none'}"
            )
    return names, Policy(progress, days), history


def _lines(found: Sequence[Doomed]) -> Iterable[str]:
    largest = sorted(found, key=lambda each: -each.kept.size)
    for each in largest[:SHOWN]:
        age = f"{each.kept.age_s / 86_400:.1f} days old"
        yield f"  {shown_bytes(each.kept.size):>10}  {each.kept.name}  ({age}; {each.why})"
    if len(found) > SHOWN:
        rest = sum(each.kept.size for each in largest[SHOWN:])
        yield f"  {shown_bytes(rest):>10}  in {len(found) - SHOWN} more"


def _days(number: float) -> str:
    return "a day" if number == 1 else f"{number:g} days"


def _digest(each: Doomed) -> str:
    return each.kept.name.split("/")[1] if "/" in each.kept.name else ""


def _forget_leases(store: ArtifactStore) -> None:
    """Records of leases that nobody holds any more."""
    register = store.register()
    for name in register.names():
        entry = register.read(name)
        if entry is None or entry.age_s < 2 * TTL_S:
            continue
        if not _held(entry) or store.committed(name):
            register.remove(name)
