"""What an autoscaler can add, read from the launcher's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.nodes import _more, _of_launcher

CONFIG = """
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, max_workers: 0}
  gpu: {resources: {CPU: 8, GPU: 1}, min_workers: 0, max_workers: 3}
  cpu: {resources: {CPU: 16}}
"""


def test_kinds_of_nodes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert _of_launcher(tmp_path / "config.yaml") == [("gpu", {"CPU": 8, "GPU": 1}, 3), ("cpu", {"CPU": 16}, 5)]


@pytest.mark.parametrize("text", ["", "[]", "{", "available_node_types: 3", "available_node_types: {a: 1}"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, text: str) -> None:
    assert _of_launcher(tmp_path / "none") is None
    (tmp_path / "config.yaml").write_text(text)
    assert _of_launcher(tmp_path / "config.yaml") is None


def test_those_that_are_there_cannot_be_added_again() -> None:
    there = {"a": {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}, "b": {"CPU": 8.0}}
    assert _more("gpu", {"CPU": 8, "GPU": 1}, 3, there).most == 2
    assert _more("gpu", {"CPU": 8, "GPU": 1}, -1, there).most == 999
    assert _more("gpu", {"CPU": 8, "GPU": 1}, 0, there).most == 0
