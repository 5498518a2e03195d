"""`slimvit store`: what lies in a store, whether it is sound, and a way to take something out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from cluster.storage import ArtifactStore
from orchestrator.errors import StoreError, UsageError
from orchestrator.keeping.collect import leased
from orchestrator.keeping.roots import EMPTY, roots_of
from orchestrator.planning.stored import shown_bytes
from specs.words import counted

SHOWN = 20
Say = Callable[[str], None]


def show(store: ArtifactStore, *, everything: bool, say: Say) -> None:
    """Sizes by kind and by experiment; with `everything`, each artefact with the experiments that need it."""
    inventory, roots, busy = store.inventory(), roots_of((), store, history=True), leased(store)
    kinds: dict[str, list[int]] = defaultdict(list)
    needed: dict[str, int] = defaultdict(int)
    for kept in inventory.artefacts:
        kinds[kept.name.split("/")[0]].append(kept.size)
        for experiment in roots.reached_by(kept.name) or ["(no experiment)"]:
            needed[experiment] += kept.size
    say(f"Store {store.location}")
    if not inventory.artefacts and not inventory.leftovers:
        say(EMPTY)
    for kind, sizes in sorted(kinds.items()):
        say(f"  {kind:<12}{len(sizes):>7}  {shown_bytes(sum(sizes)):>10}")
    if inventory.leftovers:
        left = sum(kept.size for kept in inventory.leftovers)
        say(f"  {'unfinished':<12}{len(inventory.leftovers):>7}  {shown_bytes(left):>10}")
    if needed:
        say("Needed by (what several experiments share counts for each)")
    for experiment, size in sorted(needed.items(), key=lambda item: -item[1]):
        say(f"  {experiment:<40}{shown_bytes(size):>10}")
    for name in sorted(busy):
        say(f"A run is at {name}")
    if everything:
        for kept in sorted(inventory.artefacts, key=lambda each: -each.size):
            by = ", ".join(roots.reached_by(kept.name)) or "-"
            say(f"{shown_bytes(kept.size):>10}  {kept.name}  {by}")


def verify(store: ArtifactStore, *, say: Say) -> None:
    """Read every file of every artefact and compare it with its digest.

    Raises:
        StoreDamaged: if anything differs; everything is read before.
    """
    names = list(store.names(""))
    roots, damaged = roots_of((), store, history=True) if not _plans_damaged(store) else None, []
    for name in names:
        try:
            problems = store.damage(name)
        except FileNotFoundError:  # deleted meanwhile
            continue
        if problems:
            damaged.append(name)
            by = ", ".join(roots.reached_by(name)) if roots is not None else ""
            say(f"DAMAGED {name}" + (f" (needed by {by})" if by else ""))
            for problem in problems:
                say(f"  {problem}")
    if damaged:
        raise StoreDamaged(
            f"{len(damaged)} of {len(names)} artefacts are damaged. Way out: `slimvit store delete {' '.join(damaged)} "
            f"--store '{store.location}'`, then `slimvit run` computes anew what is needed"
        )
    sound = f"{counted(len(names), 'artefact')} {'is' if len(names) == 1 else 'are'} sound."
    say(sound if names else f"Store {store.location}: {EMPTY}")


def remove(store: ArtifactStore, names: Sequence[str], *, say: Say) -> None:
    """Delete artefacts by name.

    Raises:
        UsageError: if a name is none, or a run is at it.
    """
    busy = leased(store)
    for name in names:
        try:
            there = store.committed(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if name in busy:
            raise UsageError(f"a run is at `{name}` at this moment; stop it first, or wait for it")
        store.delete(name)
        say(f"deleted {name}" if there else f"{name} was not there")


class StoreDamaged(StoreError):
    """Artefacts differ from their digests."""

    exit_code = 1


def _plans_damaged(store: ArtifactStore) -> bool:
    return any(store.damage(name) for name in store.names("plans"))
