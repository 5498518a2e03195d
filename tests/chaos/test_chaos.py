"""The short form: several kinds of injections, one after another, into one experiment; `benchmarks/chaos.py` is the
long one, with every kind and any number of injections, each in an experiment of its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.episode import Undisturbed, disturbed, undisturbed
from tests.chaos.grid import STAGES
from tests.chaos.injections import Injection
from tests.chaos.processes import reaper
from tests.chaos.servers import Servers, servers
from tests.cluster.s3_process import CREDENTIALS

SEED = 5
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: below it are sockets."""
    made = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Servers]:
    with pytest.MonkeyPatch.context() as patched, reaper(), servers(folder) as made:
        for name, value in CREDENTIALS.items():
            patched.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def whole(folder: Path, running: Servers) -> Undisturbed:
    return undisturbed(folder / "u", running)


def at(kind: str, after: float) -> Injection:
    """An injection of a kind, a little later than this share of the log."""
    drawn = Injection.draw(SEED, 0, (kind,))
    return replace(drawn, after=after)


def test_a_worker_the_tracking_server_and_the_driver_die_and_a_bit_flips(
    folder: Path, running: Servers, whole: Undisturbed
) -> None:
    assert len(whole.weights) == STAGES
    injections = [at("worker", 0.2), at("tracking", 0.35), at("bit flip", 0.6)]
    outcome = disturbed(folder / "d", injections, whole, running)
    assert not outcome.violations, json.dumps(outcome.to_json(), indent=1)
    assert not [done for done in outcome.done if done.startswith("missed")], outcome.done
    assert outcome.runs == 2, "the driver was killed once"
