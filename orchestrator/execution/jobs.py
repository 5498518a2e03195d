"""`slimvit submit`, `status`, `logs`, `stop`: runs as jobs of a Ray cluster, through its Jobs API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from cluster.refusal import token_refused
from cluster.ship import bundle
from cluster.token import has_token, show_token
from orchestrator.errors import ResourceError, UsageError
from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan
from specs.assign import assign, value_at
from specs.expand import path_fields
from specs.load import load
from specs.problems import nearest
from strategies import registry

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")

SPEC = "experiment.yaml"
"""The resolved spec among the shipped files."""
_AWAKE_PATIENCE_S = 60.0
"""How long a cluster that has just started may take until it accepts jobs, in seconds."""
_STOP_WAIT_S = 30
"""How long Ray waits after asking a job to stop before it kills it; stages save their progress meanwhile."""
_UNFINISHED = ("PENDING", "RUNNING")


def submit(spec: Path, assignments: Sequence[str], address: str) -> str:
    """Send a run to a cluster; the same spec to the same cluster finds the job that is already there.

    The project's code and the resolved spec are shipped. Data, store and record are not: their relative paths are made
    absolute here and must be reachable from the cluster under the same path.

    A job that failed or was stopped is followed by a new attempt, whose run goes on from the store.

    Args:
        spec: the spec file.
        assignments: `PATH=VALUE` each.
        address: of the cluster's dashboard, `http://HOST:8265`.

    Returns:
        The job's id.

    Raises:
        SpecProblems, PlanError: if the spec is wrong.
        ResourceError: if the cluster cannot be reached, or refuses.
    """
    document = load(spec, assignments, resolver=registry.resolver)
    plan = make_plan(document)
    data = _with_absolute_paths(document.experiment.model_dump(mode="json"))
    first = f"slimvit-{plan.experiment}-{_digest(plan, data)}"
    with _client(address) as client:
        known = _jobs(client)
        name, attempt = first, 1
        while name in known and known[name].status not in (*_UNFINISHED, "SUCCEEDED"):
            attempt += 1
            name = f"{first}-{attempt}"
        if name in known:
            return name
        with tempfile.TemporaryDirectory(prefix="slimvit-") as scratch:
            folder = bundle(Path(scratch) / "code")
            (folder / SPEC).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")

            logging.getLogger("ray").setLevel(logging.WARNING)  # each package that it sends is told otherwise

            def send() -> str:
                return client.submit_job(
                    submission_id=name,
                    entrypoint=_entrypoint(),
                    runtime_env={
                        "working_dir": str(folder),
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
                    },
                    metadata={"experiment": plan.experiment, "spec": str(spec)},
                )

            return _asked(address, lambda: _once_awake(address, send))


def status(job: str, address: str) -> str:
    """How a job stands: state, since when, and Ray's message.

    Raises:
        UsageError: if there is no such job.
        ResourceError: if the cluster cannot be reached.
    """
    with _client(address) as client:
        details = _details(client, job, address)
        state = str(details.status.value)
        message = f": {details.message}" if details.message else ""
        way_on = "" if state in (*_UNFINISHED, "SUCCEEDED") else "\nSubmit the same spec again to go on."
        return f"{job} {state}{message}{way_on}"


def logs(job: str, address: str, follow: bool) -> Iterator[str]:
    """What a job has printed so far; with `follow`, also what it prints until it ends.

    Raises:
        UsageError: if there is no such job.
        ResourceError: if the cluster cannot be reached.
    """
    with _client(address) as client:
        _details(client, job, address)
        if not follow:
            yield _asked(address, lambda: client.get_job_logs(job))
            return
        stream: Any = client.tail_job_logs(job)  # an asynchronous generator, typed as less
        with asyncio.Runner() as runner:
            try:
                while (text := runner.run(anext(stream, None))) is not None:
                    yield text
            finally:  # whoever reads may have had enough before the job ended
                runner.run(stream.aclose())


def stop(job: str, address: str) -> str:
    """Ask a job to save its progress and end.

    Raises:
        UsageError: if there is no such job.
        ResourceError: if the cluster cannot be reached.
    """
    with _client(address) as client:
        details = _details(client, job, address)
        if details.status.value not in _UNFINISHED:
            return f"{job} has ended before ({details.status.value})"
        _asked(address, lambda: client.stop_job(job))
    return f"{job} is stopping; submit the same spec again to go on"


def _entrypoint() -> str:
    """The job's shell command. Ray starts it with the node's PATH, which need not lead to the Python that Ray itself
    runs in; so the first that has what slimvit needs is taken, this process's own (on shared disks) included."""
    candidates = " ".join(shlex.quote(python) for python in ("python", "python3", sys.executable))
    needs = "import sys; from importlib.util import find_spec as f; sys.exit(not all(map(f, sys.argv[1:])))"
    return (
        f"for python in {candidates}; do "
        f'"$python" -c {shlex.quote(needs)} ray torch timm pydantic rich typer 2>/dev/null && '
        f'exec "$python" -m orchestrator.cli run {SPEC} --address auto --plain; done; '
        "echo 'error: no Python on this node has ray, torch, timm, pydantic, rich and typer' >&2; exit 1"
    )


def _digest(plan: Plan, data: dict[str, Any]) -> str:
    """What makes two submissions the same: the stages (of a search, whose stages grow, the search), and everything else
    that the spec says."""
    stages = sorted(plan.stages) if plan.search is None else [plan.search.digest]
    content = json.dumps([stages, data], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _with_absolute_paths(data: dict[str, Any]) -> dict[str, Any]:
    """On the cluster the spec is read in another folder."""
    for path in path_fields(data):
        text = value_at(data, path)
        scheme = "sqlite:///" if text.startswith("sqlite:///") else ""
        if scheme or "://" not in text:
            absolute = scheme + os.path.abspath(text.removeprefix(scheme))
            data = assign(data, ".".join(str(part) for part in path), absolute)
    return data


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    show_token()
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise UsageError(f"`{address}` is no address of a Ray dashboard; it looks like `http://HOST:8265`")
    yield _asked(address, lambda: JobSubmissionClient(address.rstrip("/")))


def _once_awake(address: str, question: Callable[[], T]) -> T:
    """A cluster that has just started answers before the agents that take jobs do; wait for them."""
    until = time.monotonic() + _AWAKE_PATIENCE_S
    while True:
        try:
            return question()
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > until:
                raise ResourceError(
                    f"the Ray cluster at `{address}` takes no jobs: the agent that starts them does not answer. If "
                    "another Ray cluster runs on its head node, that one holds the agent's port: end it, or use it"
                ) from error
        time.sleep(1.0)


def _asked(address: str, question: Callable[[], T]) -> T:
    """Put a question to the cluster; whatever goes wrong becomes a message with a way out."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        return question()
    except AuthenticationError as error:
        raise ResourceError(token_refused(address, has_token=has_token())) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ResourceError(
            f"no Ray dashboard answers at `{address}`. Check the address (`ray status` on the head node, port 8265) "
            "and that the port is open from here"
        ) from error
    except RuntimeError as error:
        raise ResourceError(f"the Ray cluster at `{address}` refused: {str(error).splitlines()[0]}") from error


def _jobs(client: JobSubmissionClient) -> dict[str, JobDetails]:
    return {job.submission_id: job for job in client.list_jobs() if job.submission_id}


def _details(client: JobSubmissionClient, job: str, address: str) -> JobDetails:
    known = _asked(address, lambda: _jobs(client))
    if job not in known:
        near = nearest(job, known)
        raise UsageError(
            f"there is no job `{job}` at `{address}`"
            + (f"; did you mean `{near}`?" if near else ". ")
            + ("" if near else f"It has: {', '.join(sorted(known)) or 'none'}")
        )
    return known[job]
