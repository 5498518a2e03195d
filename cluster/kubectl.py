"""Kubernetes' own command line tool, which knows the user's clusters and credentials."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

_TIMEOUT_S = 120.0
_ADVICE = (
    ("no matches for kind", "KubeRay is not installed there: install its operator (see `docs/clusters.md`)"),
    ("forbidden", "your account lacks the right; ask for the roles in `docs/clusters.md`"),
    ("unauthorized", "your credentials have expired or are wrong; log in to the Kubernetes cluster again"),
    ("must be logged in", "your credentials have expired or are wrong; log in to the Kubernetes cluster again"),
    ("namespaces", "make the namespace (`kubectl create namespace NAME`), or correct `cluster.namespace`"),
    ("connection refused", "the Kubernetes cluster does not answer; check `kubectl config current-context`"),
    ("no such host", "the Kubernetes cluster does not answer; check `kubectl config current-context`"),
    ("i/o timeout", "the Kubernetes cluster does not answer; check `kubectl config current-context` and your network"),
)


class KubectlError(RuntimeError):
    """`kubectl` refused or is missing; the message has the way out."""


def available() -> bool:
    """Whether `kubectl` is installed here."""
    return shutil.which("kubectl") is not None


def apply(manifests: str) -> str:
    """Make what the manifests describe, after the API server has checked them against its installed schemas.

    Raises:
        KubectlError: if the server refuses, or cannot be reached; then nothing has been made.
    """
    kubectl(["apply", "--dry-run=server", "--validate=strict", "-f", "-"], manifests)
    return kubectl(["apply", "-f", "-"], manifests)


def kubectl(arguments: Sequence[str], text: str | None = None) -> str:
    """What a call prints.

    Raises:
        KubectlError: if it fails.
    """
    try:
        done = subprocess.run(
            ["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise KubectlError("`kubectl` is not installed here; install it, or apply the files by other means") from error
    except subprocess.TimeoutExpired as error:
        raise KubectlError(f"`kubectl {arguments[0]}` did not answer within {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        advice = next((way for sign, way in _ADVICE if sign in said.lower()), None)
        raise KubectlError(f"`kubectl {arguments[0]}` failed: {said}" + (f"\n    {advice}" if advice else ""))
    return done.stdout
