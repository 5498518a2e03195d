"""Two runs of the same spec that finish the same stage."""

from __future__ import annotations

from orchestrator.training.settle import settle


def test_the_first_result_counts(store, tmp_path):
    results = []
    for seconds in (1.0, 2.0):
        folder = tmp_path / f"after-{seconds}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"the same")
        results.append(settle(store, "stages/abc", folder, {"seconds": seconds}))
    assert results == [{"seconds": 1.0}, {"seconds": 1.0}]
