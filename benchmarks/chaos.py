"""Fault injection: what becomes of a run when something dies, fills up, fails, is damaged, or tells the wrong time.

    python -m benchmarks.chaos                          # seven injections of each kind; hours on two cores
    python -m benchmarks.chaos --seed 5 --together 4    # up to four, one after another, into one experiment
    python -m benchmarks.chaos --seed 5 --only 17 32    # these, in one experiment, as in a campaign with this seed
    python -m benchmarks.chaos --seed 5 --first 40 --injections 20 --kinds worker lane

The experiment is a teacher, two students in three stages each and their measurements, on two lanes, run by the
`slimvit run` command on a real Ray cluster, with MLflow's server and, where it is about a bucket, moto's behind a proxy
that fails (`tests/chaos`). Number, kind, moment and everything else that is left to chance follow from the seed; the
moment is a place in the log, so that it means the same on a machine of another speed. Which of two processes is a
little ahead at that moment is not under the seed's control.

Afterwards: the same command finishes, the next time at the latest; the weights of every stage are those of a run
that nothing happened to, bit for bit; no stage was computed again once it was finished, and those under way went on
from their newest checkpoint; MLflow has every run and every point once; no process, placement group or lease is left.

Prints JSON; a line about each injection goes to the standard error. `work_lost` compares, for each kill and each stage
that was under way, the seconds from its newest checkpoint to the kill with the longest time between two of its
checkpoints. It counts experiments with one injection: where one follows another, a stage that still waits to be begun
again looks from outside like one that is at work. Of experiments with violations the folders stay, with everything that
the runs wrote.

Runs on Linux. Full disks and cut networks need rights: `unshare --user --map-root-user --mount --net python -m …` has
them, once `ip link set lo up` was said there. What cannot be made is left out, and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.chaos.episode import Outcome, Undisturbed, disturbed, undisturbed
from tests.chaos.grid import CHECKPOINT_EVERY, SPEC
from tests.chaos.injections import KINDS, Injection, Place
from tests.chaos.processes import reaper
from tests.chaos.saved import Lost
from tests.chaos.servers import Servers, servers
from tests.cluster.s3_process import CREDENTIALS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=7 * len(KINDS))
    parser.add_argument("--seed", type=int, help="default: a fresh one, which is printed")
    parser.add_argument("--first", type=int, default=0, help="number of the first injection")
    parser.add_argument("--only", type=int, nargs="+", help="only these numbers, in one experiment")
    parser.add_argument("--together", type=int, default=1, help="so many injections may share an experiment")
    parser.add_argument("--known", type=Path, help="file that keeps the undisturbed run for the next campaign")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only injections of these kinds")
    parser.add_argument(
        "--sum-up", type=Path, nargs="+", help="run nothing; folders of campaigns that were interrupted"
    )
    arguments = parser.parse_args()
    if arguments.sum_up:
        ended = [Outcome.read(file) for folder in arguments.sum_up for file in sorted(folder.glob("e*/outcome.json"))]
        print(json.dumps(summary(ended[0].injections[0].seed, ended, {}), indent=1))
        return
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    numbers = arguments.only or range(arguments.first, arguments.first + arguments.injections)
    drawn = [Injection.draw(seed, number, KINDS) for number in numbers]
    wanted = [injection for injection in drawn if injection.kind in arguments.kinds]
    experiments = shared_out(wanted, len(wanted) if arguments.only else arguments.together)
    _say(f"seed {seed}: {len(wanted)} injections into {len(experiments)} experiments")
    os.environ.update(CREDENTIALS)
    # The path is short, because sockets lie below it.
    home = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    outcomes: list[Outcome] = []
    skipped: dict[str, str] = {}
    try:
        with reaper(), servers(home) as running:
            whole = _undisturbed(home / "u", running, arguments.known)
            _say(f"undisturbed: {whole.seconds:.0f} s between the first line of its log and the last")
            for injections in experiments:
                kinds = {injection.kind for injection in injections}
                if kinds <= skipped.keys():
                    continue
                try:
                    outcomes.append(disturbed(home / f"e{injections[0].number}", injections, whole, running))
                except PermissionError as error:
                    skipped |= dict.fromkeys(kinds, str(error))
                    continue
                except Exception as error:  # one that could not be judged must not hide the others
                    unjudged = Outcome(injections, ["not judged"] * len(injections), [f"not judged: {error!r}"])
                    outcomes.append(unjudged)
                    traceback.print_exc()
                _report(outcomes[-1], seed)
    finally:
        if not any(outcome.violations for outcome in outcomes):
            shutil.rmtree(home, ignore_errors=True)
        print(json.dumps(summary(seed, outcomes, skipped), indent=1))
    sys.exit(any(outcome.violations for outcome in outcomes))


def _undisturbed(folder: Path, running: Servers, known: Path | None) -> Undisturbed:
    """The run that nothing happens to; if it is known from before, and was of the same experiment, that one."""
    if known is not None and known.is_file():
        found = json.loads(known.read_text(encoding="utf-8"))
        if found.pop("spec") == SPEC:
            return Undisturbed(**found)
    whole = undisturbed(folder, running)
    if known is not None:
        known.write_text(json.dumps({"spec": SPEC} | dataclasses.asdict(whole)), encoding="utf-8")
    return whole


def shared_out(injections: list[Injection], together: int) -> list[list[Injection]]:
    """Injections of one place, at most so many at a time, in the order in which they happen."""
    places: dict[Place, list[Injection]] = defaultdict(list)
    for injection in injections:
        places[KINDS[injection.kind].place].append(injection)
    groups = [found[i : i + together] for found in places.values() for i in range(0, len(found), together)]
    return [sorted(group, key=lambda injection: injection.after) for group in groups]


def summary(seed: int, outcomes: list[Outcome], skipped: dict[str, str]) -> dict[str, Any]:
    """What is claimed, from what happened."""
    told = [(i, done) for outcome in outcomes for i, done in zip(outcome.injections, outcome.done, strict=True)]
    struck = [injection for injection, done in told if not done.startswith(("missed", "not judged"))]
    return {
        "benchmark": "chaos",
        "seed": seed,
        "cores": len(os.sched_getaffinity(0)),
        "injections": len(struck),
        "experiments": len(outcomes),
        "runs": sum(outcome.runs for outcome in outcomes),
        "by_kind": dict(sorted(Counter(injection.kind for injection in struck).items())),
        "missed": [injection.number for injection, done in told if done.startswith("missed")],
        "skipped": skipped,
        "violations": [
            {
                "done": {i.number: done for i, done in zip(outcome.injections, outcome.done, strict=True)},
                "violations": outcome.violations,
                "replay": _replay(seed, outcome),
                "folder": str(outcome.folder),
            }
            for outcome in outcomes
            if outcome.violations
        ],
        "tracebacks": {outcome.injections[0].number: outcome.tracebacks for outcome in outcomes if outcome.tracebacks},
        "work_lost": work_lost([lost for outcome in outcomes if len(outcome.injections) == 1 for lost in outcome.lost]),
    }


def _replay(seed: int, outcome: Outcome) -> str:
    numbers = " ".join(str(injection.number) for injection in outcome.injections)
    return f"python -m benchmarks.chaos --seed {seed} --only {numbers}"


def work_lost(all_of_it: list[Lost]) -> dict[str, Any]:
    """Seconds of training that kills cost, beside the time between two checkpoints. Measurements have none."""
    train = [(lost, lost.interval_s) for lost in all_of_it if lost.interval_s is not None]
    found: dict[str, Any] = {"stages_hit": len(train), "measurements_begun_anew": len(all_of_it) - len(train)}
    if not train:
        return found
    seconds, intervals = [lost.seconds for lost, _ in train], [interval for _, interval in train]
    return found | {
        "checkpoint_every_steps": CHECKPOINT_EVERY,
        "seconds": {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)},
        "longest_interval_seconds": {
            "median": round(statistics.median(intervals), 2),
            "most": round(max(intervals), 2),
        },
        "more_than_the_interval": sum(lost.seconds > interval for lost, interval in train),
        "went_on_before_the_newest_checkpoint": sum(lost.resumed_step < lost.saved_step for lost, _ in train),
    }


def _report(outcome: Outcome, seed: int) -> None:
    for injection, done in zip(outcome.injections, outcome.done, strict=True):
        _say(f"{injection.number} {injection.kind}: {done}")
    verdict = f"VIOLATIONS {outcome.violations} ({_replay(seed, outcome)})" if outcome.violations else "ok"
    _say(f"    {outcome.runs} runs, {outcome.seconds:.0f} s: {verdict}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
