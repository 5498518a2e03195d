"""Pack the project's own packages into one folder that Ray can send to nodes that do not have them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

PACKAGES = ("specs", "strategies", "cluster", "orchestrator")
"""Top-level packages of the distribution, in the order of who imports whom."""
DISTRIBUTION = "slimvit"
_METADATA = ("METADATA", "entry_points.txt", "top_level.txt")
"""Files of the distribution's metadata that make `importlib.metadata` find its entry points on the other side."""


def package_root() -> Path:
    """The folder that holds the packages (a checkout, or `site-packages`)."""
    spec = importlib.util.find_spec(PACKAGES[0])
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent


def bundle(into: Path) -> Path:
    """Copy the packages and the distribution's metadata into a folder to be used as Ray's `working_dir`.

    Nothing else of a checkout goes along: no data, no store, no history, no virtual environment.

    Args:
        into: folder that is made; must not exist.

    Returns:
        `into`.
    """
    into.mkdir(parents=True)
    for package in PACKAGES:
        shutil.copytree(package_root() / package, into / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return into
    metadata = into / f"{DISTRIBUTION}-{distribution.version}.dist-info"
    metadata.mkdir()
    for name in _METADATA:
        if text := distribution.read_text(name):
            (metadata / name).write_text(text, encoding="utf-8")
    return into
