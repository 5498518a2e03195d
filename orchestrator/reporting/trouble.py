"""What is wrong when the record cannot be written, and what to do about it. Knows MLflow's messages, not MLflow."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import StoreError
from orchestrator.reporting.record import sqlite_file
from specs.secrets import redact


@dataclass(frozen=True)
class Trouble:
    """Why the record cannot be written."""

    problem: str
    """What is wrong, in half a sentence."""
    way_out: str
    """What to do."""
    lasting: bool = True
    """Whether it stays until a person does something; else it may pass by itself."""

    def __str__(self) -> str:
        return f"{self.problem}. {self.way_out}".strip()


_CREDENTIALS = (
    "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment of this "
    "command (never in the spec)"
)


def trouble(uri: str, error: BaseException) -> Trouble:
    """Explain a failure of MLflow's client.

    Args:
        uri: the tracking address.
        error: what it raised.
    """
    where = redact(f"MLflow at {uri}")
    text = " ".join(str(e) for e in _chain(error))
    status = _status(error, text)
    if isinstance(error, StoreError):
        return Trouble(error.message.rstrip("."), "")
    if isinstance(error, BlockingIOError):
        return Trouble(str(error), "Nothing needs to be done")
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return Trouble(
            f"{where} has a database of another version of MLflow",
            f"If it is older: make a copy of it, then run `mlflow db upgrade {redact(uri)}` (for a server: its backend "
            "store's address). If it is newer: install the MLflow version that wrote it, or name another "
            "`tracking.uri`",
        )
    if status == 401:
        return Trouble(f"{where} refuses the credentials (401)", _CREDENTIALS)
    if status == 403:
        return Trouble(
            f"{where} forbids writing (403)",
            f"Ask its owner for the permission to edit the experiment, or use other credentials. {_CREDENTIALS}",
        )
    if status is not None and (status == 429 or status >= 500):
        return Trouble(
            f"{where} answers with an error ({status})",
            "Its server's log says why: overloaded, or without its database or artefact store",
            False,
        )
    if "failed with error code 404" in text or "not in a valid JSON format" in text:
        return Trouble(
            f"what answers at {redact(uri)} is no MLflow server",
            "Check host and port of `tracking.uri`; `/health` says `OK`",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "SSLError" in text:
        return Trouble(
            f"the certificate of {redact(uri)} cannot be verified",
            "Name the file of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH, or check `https://` in `tracking.uri`",
        )
    if "NoCredentialsError" in text or "Unable to locate credentials" in text:
        return Trouble(
            f"{where} keeps its files in a bucket for which there are no credentials",
            "Set up the cloud's credential chain (environment, `~/.aws`, a role), or let the server pass files on: "
            "`mlflow server --artifacts-destination s3://…`",
        )
    if sqlite_file(uri) is not None:
        return _of_a_file(uri, text)
    if "timeout exception" in text or "timed out" in text:
        return Trouble(
            f"{where} does not answer in time", "Check that the server is up and its port open (firewall, VPN)", False
        )
    if "NameResolutionError" in text or "Failed to resolve" in text:
        return Trouble(
            f"{where} cannot be found: its name is not known here", "Check `tracking.uri`, DNS and VPN", False
        )
    if "refused" in text or "Connection aborted" in text or "Max retries exceeded" in text or "reset" in text:
        return Trouble(
            f"{where} cannot be reached: {_connection(text)}",
            "Start the server (`mlflow server …`), or check host and port of `tracking.uri`",
            False,
        )
    return Trouble(f"{where} cannot be written: {_first_line(error)}", "Look into the server's log", False)


def _of_a_file(uri: str, text: str) -> Trouble:
    """Trouble with a SQLite file."""
    file = sqlite_file(uri)
    if "not a database" in text or "malformed" in text:
        return Trouble(
            f"{file} is no SQLite database, or a damaged one", "Move it away, or name another `tracking.uri`"
        )
    if "readonly" in text or "unable to open" in text or "Permission denied" in text or "Is a directory" in text:
        return Trouble(f"the record {file} cannot be written", "Choose a file that you may write: `tracking.uri`")
    if "disk is full" in text or "No space left" in text:
        return Trouble(f"the disk of the record {file} is full", "Make room", False)
    if "locked" in text:
        return Trouble(
            f"the record {file} is busy: several processes write it",
            "For many runs at once use a server: `mlflow server --backend-store-uri postgresql+psycopg2://…`",
            False,
        )
    return Trouble(f"the record {file} cannot be written: {redact(text).strip().splitlines()[0][:300]}", "", False)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _status(error: BaseException, text: str) -> int | None:
    """HTTP status that the server answered with, as far as the message tells."""
    for pattern in (r"failed with error code (\d{3})", r"too many (\d{3}) error", r"(\d{3}) (?:Client|Server) Error"):
        found = re.search(pattern, text)
        if found:
            return int(found[1])
    if type(error).__name__ == "RestException":  # the server explained itself in JSON
        ask = getattr(error, "get_http_status_code", None)
        return int(ask()) if ask is not None else None
    return None


def _connection(text: str) -> str:
    for sign, meaning in (("refused", "connection refused"), ("reset", "connection reset"), ("aborted", "cut off")):
        if sign in text:
            return meaning
    return "no connection"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
