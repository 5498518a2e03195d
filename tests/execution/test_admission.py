"""What fits where, before anything starts."""

from __future__ import annotations

import pytest

from cluster.nodes import NodeGroup
from orchestrator.errors import ResourceError
from orchestrator.execution.admission import admit, check_measurements, check_stages, never_runs
from orchestrator.planning.plan import MeasureStage, TrainStage
from specs.measurement import MeasurementSpec
from specs.resources import ResourcesSpec
from specs.training import TrainingSpec

LAPTOP = {"CPU": 8.0, "memory": 1e9}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("spec", "nodes", "stages", "lanes"),
    [
        ({}, [LAPTOP], 100, 8),
        ({}, [LAPTOP], 3, 3),
        ({"cpus_per_worker": 4}, [LAPTOP], 100, 2),
        ({"lanes": 2}, [LAPTOP], 100, 2),
        ({"workers": 3}, [LAPTOP], 100, 2),
        ({"cpus_per_worker": 5}, [LAPTOP, LAPTOP], 100, 2),
        ({"gpus_per_worker": 1}, [GPU_NODE, LAPTOP], 100, 4),
        ({"gpus_per_worker": 0.1}, [GPU_NODE], 100, 16),
        ({"gpus_per_worker": 0.1}, [{"CPU": 64.0, "GPU": 1.0}], 100, 10),
        ({"workers": 4, "gpus_per_worker": 1}, [GPU_NODE, GPU_NODE], 100, 2),
    ],
)
def test_lanes(spec: dict, nodes: list, stages: int, lanes: int) -> None:
    assert admit(ResourcesSpec(**spec), nodes, stages=stages).lanes == lanes


@pytest.mark.parametrize(
    ("conditions", "nodes", "says"),
    [
        ({"device": "cuda"}, [LAPTOP], ["`measure:toy`", "8 CPUs and 0 GPUs", "`--conditions device=`"]),
        ({"device": "cuda"}, [LAPTOP, GPU_NODE], []),
        ({"threads": 9}, [LAPTOP, LAPTOP], ["`threads: 9`", "at most 8"]),
        ({"threads": 8}, [LAPTOP], []),
    ],
)
def test_conditions_that_no_node_offers_are_refused(conditions: dict, nodes: list, says: list[str]) -> None:
    stage = MeasureStage.model_construct(label="measure:toy", measurement=MeasurementSpec(**conditions))
    if not says:
        check_measurements([stage], nodes)
        return
    with pytest.raises(ResourceError) as caught:
        check_measurements([stage], nodes)
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "nodes", "says"),
    [
        ({"gpus_per_worker": 1}, [LAPTOP], ["1 GPU", "8 CPUs and 0 GPUs on 1 node", "gpus_per_worker` to 0"]),
        ({"workers": 9}, [LAPTOP], ["9 workers of 1 CPU", "holds 8", "resources.workers"]),
        ({"cpus_per_worker": 9}, [LAPTOP, LAPTOP], ["1 worker of 9 CPUs", "16 CPUs", "2 nodes", "holds 0"]),
        ({"lanes": 9}, [LAPTOP], ["resources.lanes: 9", "at most 8"]),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(spec: dict, nodes: list, says: list[str]) -> None:
    with pytest.raises(ResourceError) as caught:
        admit(ResourcesSpec(**spec), nodes, stages=4)
    for words in says:
        assert words in str(caught.value)


BIG = NodeGroup("gpu_worker", {"CPU": 8.0, "GPU": 2.0}, most=3)


@pytest.mark.parametrize(
    ("spec", "nodes", "growth", "lanes"),
    [
        ({"gpus_per_worker": 1}, [LAPTOP], [BIG], 6),
        ({"gpus_per_worker": 1}, [], [BIG], 6),  # an autoscaler that starts at no nodes
        ({"gpus_per_worker": 1, "lanes": 4}, [], None, 4),  # one that does not say what it can add
        ({"gpus_per_worker": 1}, [], None, 1),
        ({"workers": {"min": 1, "max": 4}}, [LAPTOP], [], 2),
        ({"workers": {"min": 2, "max": 16}}, [LAPTOP], [], 1),
        ({"workers": {"min": 2, "max": 16}, "lanes": 4}, [LAPTOP], [], 4),
    ],
)
def test_lanes_on_clusters_that_grow_and_lanes_that_do(
    spec: dict, nodes: list, growth: list | None, lanes: int
) -> None:
    assert admit(ResourcesSpec(**spec), nodes, stages=100, growth=growth).lanes == lanes


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"gpus_per_worker": 4},
            ["1 worker of 1 CPU and 4 GPUs", "at most 3 of 8 CPUs and 2 GPUs (`gpu_worker`)", "holds 0"],
        ),
        ({"lanes": 7, "gpus_per_worker": 1}, ["can add at most 3", "holds 6"]),
        ({"workers": {"min": 40, "max": 99}}, ["at least 40 workers", "holds 32"]),
    ],
)
def test_what_an_autoscaler_cannot_add_either(spec: dict, says: list[str]) -> None:
    with pytest.raises(ResourceError) as caught:
        admit(ResourcesSpec(**spec), [LAPTOP], stages=100, growth=[BIG])
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("workers", "batch_size", "nodes", "says"),
    [
        ({"min": 1, "max": 8}, 25, [LAPTOP], None),
        ({"min": 2, "max": 8}, 25, [LAPTOP], None),  # on five
        ({"min": 2, "max": 8}, 25, [{"CPU": 4.0}], "`toy` needs 5 workers"),
        ({"min": 2, "max": 8}, 25, None, None),  # an autoscaler that does not say what it can add
        ({"min": 2, "max": 8}, 13, None, "no number of workers from 2 to 8"),
        (2, 25, [LAPTOP], "25 cannot be shared by 2 workers"),
        (9, 27, [LAPTOP], "needs 9 workers"),
    ],
)
def test_each_stages_own_batch_decides_where_it_can_run(
    workers: object, batch_size: int, nodes: list | None, says: str | None
) -> None:
    spec = ResourcesSpec.model_validate({"workers": workers})
    stage = TrainStage.model_construct(label="toy", training=TrainingSpec(batch_size=batch_size))
    reason = never_runs(stage, spec, nodes)
    if says is None:
        assert reason is None
        check_stages([stage], spec, nodes)
        return
    assert says in str(reason)
    with pytest.raises(ResourceError, match=says):
        check_stages([stage], spec, nodes)
