"""How the process ends: every outcome of a command as a message and an exit code."""

from __future__ import annotations

import datetime
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cluster.storage import StoreUnavailable
from orchestrator.errors import Interrupted, SlimvitError, StoreError, UsageError
from specs.secrets import redact

_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERNAL_ERROR = 70
"""Exit code of our own mistakes (`EX_SOFTWARE` of sysexits.h)."""


def ending(command: Callable[[], object]) -> int:
    """Run a command; turn whatever it raises into a message on stderr and an exit code.

    A user's mistake never shows a traceback. Ours does not either, but says in which file it is.
    """
    try:
        result = command()
    except Interrupted as error:
        print(redact(error.message), file=sys.stderr, flush=True)
        return error.exit_code
    except SlimvitError as error:
        say(error.message)
        return error.exit_code
    except StoreUnavailable as error:
        say(str(error))
        return StoreError.exit_code
    except OSError as error:
        if error.errno not in _FULL:
            return _unforeseen(error)
        say(
            f"no room is left: {error}. Free some (`slimvit gc` deletes what no experiment needs); nothing that is "
            "finished is lost, and the same command goes on"
        )
        return StoreError.exit_code
    except typer.TyperException as error:
        say(f"{error.format_message()}{_usage(error)}")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        if users_mistake(error):
            say(str(error))
            return UsageError.exit_code
        return _unforeseen(error)
    if result == Interrupted.exit_code:
        return _interrupted()
    return result if isinstance(result, int) else 0


def _unforeseen(error: Exception) -> int:
    say(
        f"internal error: {type(error).__name__}: {error}\n"
        f"This is a mistake in slimvit (or in a strategy's package), not in your spec. The traceback is in "
        f"{_save_traceback(error)}; please report it with that file."
    )
    return INTERNAL_ERROR


def users_mistake(error: Exception) -> bool:
    """Whether an error outside `SlimvitError` is about what the user wrote: a spec, or a strategy's name or option."""
    from specs.problems import SpecProblems
    from strategies.api import OptionError
    from strategies.registry import StrategyUnavailable

    return isinstance(error, (SpecProblems, OptionError, StrategyUnavailable))


@contextmanager
def usage_errors() -> Iterator[None]:
    """Within this block a `ValueError` is about the command's arguments."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def say(message: str) -> None:
    """Print to stderr, `error:` before it, and no secret in it."""
    message = redact(message)
    text = message if message.startswith("internal error") else f"error: {message}"
    print(text, file=sys.stderr, flush=True)


def _interrupted() -> int:
    print("stopped", file=sys.stderr, flush=True)
    return Interrupted.exit_code


def _usage(error: typer.TyperException) -> str:
    """Which help to read, for errors in the use of a command."""
    context = getattr(error, "ctx", None)
    return f"\n    `{context.command_path} --help` shows how it is used." if context is not None else ""


def _save_traceback(error: Exception) -> Path:
    """Write the traceback to a file of its own."""
    now = datetime.datetime.now(datetime.UTC)
    text = "".join(traceback.format_exception(error))
    command = " ".join(sys.argv)
    descriptor, name = tempfile.mkstemp(prefix=f"slimvit-{now:%Y%m%dT%H%M%SZ}-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(redact(f"{now.isoformat()}\n{command}\nPython {sys.version}\n\n{text}"))
    return Path(name)
