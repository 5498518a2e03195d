"""Errors that are a user's to mend. The command prints them without a traceback and exits with their code.

    SlimvitError                 exit 1
    ├── SpecError                exit 2   the spec is wrong (a list of located problems)
    ├── UsageError               exit 2   the command line is wrong
    ├── PlanError                exit 2   the spec is valid but cannot be planned (conflicts, unknown stage)
    ├── DataError                exit 3   images are missing or unusable
    ├── StoreError               exit 4   the artefact store is unreachable, or an artefact is damaged
    ├── ResourceError            exit 5   the cluster does not have what the spec asks for
    ├── StageFailed              exit 6   at least one stage failed; the others are finished
    └── Interrupted              exit 130 stopped by the user; the same command goes on

Every message says what is wrong, where, why, and the way out. All of them survive pickling.
"""

from __future__ import annotations


class SlimvitError(Exception):
    """Base of all errors shown without a traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SpecError(SlimvitError):
    """The spec is wrong; the message lists every located problem."""

    exit_code = 2


class UsageError(SlimvitError):
    """The command line is wrong."""

    exit_code = 2


class PlanError(SlimvitError):
    """The spec is valid but cannot be planned."""

    exit_code = 2


class DataError(SlimvitError):
    """Images are missing or unusable."""

    exit_code = 3


class StoreError(SlimvitError):
    """The artefact store is unreachable, or an artefact is damaged."""

    exit_code = 4


class ResourceError(SlimvitError):
    """The cluster does not have what the spec asks for."""

    exit_code = 5


class StageFailed(SlimvitError):
    """At least one stage failed; the others are finished."""

    exit_code = 6


class Interrupted(SlimvitError):
    """Stopped by the user."""

    exit_code = 130
