"""What a person reads where `torch.compile` finds nothing to compile with."""

from __future__ import annotations

import re

_MISSING = re.compile(r"InvalidCxxCompiler|TritonMissing|Failed to find C compiler")


def without_compiler(error: BaseException) -> str | None:
    """What is missing and the way out; `None` for every other error."""
    found = _MISSING.search(str(error))
    if found is None:
        return None
    telling = next(line.strip() for line in str(error).splitlines() if found[0] in line)
    return (
        f"`torch.compile` found no compiler on this machine ({telling}). For a CPU it needs `g++`, for a GPU `gcc`: "
        "install it, or leave `compile` at `false`"
    )
