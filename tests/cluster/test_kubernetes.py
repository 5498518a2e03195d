"""Manifests for KubeRay, against Kubernetes' published schemas and KubeRay's API reference.

The pods are checked against the schemas of the Kubernetes API that the package `kubernetes-validate` ships. KubeRay's
own custom resource definitions are more than a megabyte and in no Python package; `tests/fixtures/kuberay_fields.yaml`
holds what its API reference says of its own fields, type by type. Where a file of the definitions themselves is at
hand, SLIMVIT_KUBERAY_CRDS names their folder, and the manifests are held against them, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import kubernetes
from cluster.fill import as_yaml, fill
from specs.cluster import KubernetesCluster, Toleration
from specs.data import Sample
from specs.experiment import Experiment, StageSpec, StorageSpec, TrackingSpec
from specs.model import ModelSpec
from specs.resources import ResourcesSpec

KUBERNETES = "1.33"
FIELDS = yaml.safe_load((Path(__file__).parents[1] / "fixtures" / "kuberay_fields.yaml").read_text(encoding="utf-8"))


def experiment(cluster: KubernetesCluster, root: str = "s3://bucket/store", **more: Any) -> Experiment:
    return Experiment(
        name="grid.A",
        data=Sample(kind="sample"),
        student=ModelSpec(model="vit_tiny_patch16_224"),
        stages=[StageSpec(name="only")],
        storage=StorageSpec(root=root),
        **{"tracking": TrackingSpec(uri="http://mlflow:5000"), "cluster": cluster, **more},
    )


PLAIN = KubernetesCluster(kind="kubernetes", image="registry.example/slimvit:1", max_workers=4)
FULL = KubernetesCluster(
    kind="kubernetes",
    name="team-a",
    namespace="research",
    image="registry.example/slimvit:1",
    min_workers=1,
    max_workers=8,
    cpus=8,
    gpus=2,
    memory_gib=64,
    gpu_resource="amd.com/gpu",
    node_selector={"accelerator": "mi300"},
    tolerations=[Toleration(key="amd.com/gpu", effect="NoSchedule"), Toleration(key="a", operator="Equal", value="b")],
    service_account="trainer",
    storage_class="nfs",
    storage_gb=500,
    token_secret="ray-token",
    env_secrets=["s3-credentials"],
    retries=5,
    idle_minutes=2.5,
)
CASES = {"plain": (PLAIN, "s3://bucket/store"), "full": (FULL, "/shared/store")}


@pytest.fixture(params=CASES)
def case(request) -> tuple[Experiment, KubernetesCluster]:
    cluster, root = CASES[request.param]
    return experiment(cluster, root, resources=ResourcesSpec(cpus_per_worker=4, gpus_per_worker=0.5)), cluster


def all_manifests(made: Experiment, cluster: KubernetesCluster) -> list[dict[str, Any]]:
    """As they are applied: written as YAML and read again."""
    text = as_yaml(*kubernetes.ray_cluster(made, cluster), *kubernetes.ray_job(made, cluster, "name: grid.A\n"))
    return list(yaml.safe_load_all(text))


def ray_specs(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] == "RayCluster":
            yield manifest["spec"]
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]["rayClusterSpec"]


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every pod template."""
    for spec in ray_specs(manifests):
        yield spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield group["template"]
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]["submitterPodTemplate"]


def test_pods_and_plain_objects_are_what_kubernetes_takes(case):
    validate = pytest.importorskip("kubernetes_validate").validate
    manifests = all_manifests(*case)
    for template in pods(manifests):
        name = {"name": "pod", **template.get("metadata", {})}
        validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": template["spec"]}, KUBERNETES, strict=True
        )
    for manifest in manifests:
        if manifest["kind"] in ("ConfigMap", "PersistentVolumeClaim"):
            validate(manifest, KUBERNETES, strict=True)


def test_kuberays_own_fields_are_in_its_api_reference(case):
    for manifest in all_manifests(*case):
        if manifest["kind"] in ("RayCluster", "RayJob"):
            schema = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": FIELDS["types"]}
            jsonschema.validate(manifest, schema)


def test_a_wrong_field_would_be_seen(case):
    manifest = kubernetes.ray_cluster(*case)[-1]
    manifest["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(manifest, {"$ref": "#/$defs/RayCluster", "$defs": FIELDS["types"]})


@pytest.mark.skipif(not os.environ.get("SLIMVIT_KUBERAY_CRDS"), reason="SLIMVIT_KUBERAY_CRDS names no folder of CRDs")
def test_manifests_are_what_the_published_definitions_take(case):
    folder = Path(os.environ["SLIMVIT_KUBERAY_CRDS"])
    for manifest in all_manifests(*case):
        file = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}.get(manifest["kind"])
        if file:
            versions = yaml.safe_load((folder / file).read_text(encoding="utf-8"))["spec"]["versions"]
            schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
            jsonschema.validate(manifest, closed(schema))


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, as the API server does with strict validation."""
    if isinstance(schema, dict):
        made = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and schema.get("type") == "object":
            made.setdefault("additionalProperties", False)
        return made
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


def test_nobody_is_root_and_everybody_has_limits(case):
    seen = 0
    for template in pods(all_manifests(*case)):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            seen += 1
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
    assert seen == 5  # head and worker, twice; and the submitter


def test_every_cluster_wants_a_token(case):
    cluster = case[1]
    options = [spec["authOptions"] for spec in ray_specs(all_manifests(*case))]
    expected = {"mode": "token"} | ({"secretName": cluster.token_secret} if cluster.token_secret else {})
    assert options == [expected, expected]


def test_gpus_and_resources_come_from_the_spec():
    made = experiment(PLAIN, resources=ResourcesSpec(cpus_per_worker=4, gpus_per_worker=0.5))
    worker = kubernetes.ray_cluster(made, PLAIN)[-1]["spec"]["workerGroupSpecs"][0]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert (worker["minReplicas"], worker["replicas"], worker["maxReplicas"]) == (0, 0, 4)
    cpu_only = experiment(PLAIN, resources=ResourcesSpec(cpus_per_worker=2))
    worker = kubernetes.ray_cluster(cpu_only, PLAIN)[-1]["spec"]["workerGroupSpecs"][0]
    assert worker["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "16Gi"}


def test_a_run_has_retries_and_its_spec():
    made = experiment(FULL, "/shared/store")
    claim, spec, job = kubernetes.ray_job(made, FULL, "name: grid.A\n")
    assert claim["spec"]["storageClassName"] == "nfs"
    assert claim["spec"]["resources"]["requests"]["storage"] == "500G"
    assert spec["data"]["experiment.yaml"] == "name: grid.A\n"
    assert job["spec"]["backoffLimit"] == 5
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["entrypoint"].startswith("slimvit run /etc/slimvit/experiment.yaml --address auto")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "store": "/shared", "spec": "/etc/slimvit"}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes["spec"]["configMap"]["name"] == spec["metadata"]["name"]
    assert volumes["store"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    again = kubernetes.ray_job(made, FULL, "name: grid.A\n")[-1]
    other = kubernetes.ray_job(made, FULL, "name: grid.B\n")[-1]
    assert again["metadata"]["name"] == job["metadata"]["name"] != other["metadata"]["name"]
    assert len(job["metadata"]["name"]) <= 47


def test_secrets_are_only_named():
    manifests = all_manifests(experiment(FULL, "/shared/store"), FULL)
    for spec in ray_specs(manifests):
        for template in (spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]):
            assert template["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
            assert "env" not in template["spec"]["containers"][0]
    assert "Secret" not in {manifest["kind"] for manifest in manifests}


@pytest.mark.parametrize(
    ("cluster", "root", "more", "said"),
    [
        (PLAIN, "/shared/store", {}, "pods share none"),
        (FULL, "s3://bucket/store", {}, "leave one of them"),
        (FULL, "/store", {}, "a folder of its own"),
        (PLAIN, "s3://bucket/s", {"tracking": TrackingSpec(uri="sqlite:///mlflow.db")}, "ends with it"),
        (
            PLAIN.model_copy(update={"gpus": 0}),
            "s3://bucket/s",
            {"resources": ResourcesSpec(gpus_per_worker=1)},
            "`cluster.gpus: 0`",
        ),
        (
            PLAIN.model_copy(update={"cpus": 2}),
            "s3://bucket/s",
            {"resources": ResourcesSpec(cpus_per_worker=4)},
            "`cluster.cpus: 2`",
        ),
    ],
)
def test_what_cannot_work_on_pods_is_said(cluster, root, more, said):
    (problem,) = kubernetes.problems(experiment(cluster, root, **more), cluster)
    assert said in problem


def test_nothing_is_held_against_what_works(case):
    assert kubernetes.problems(*case) == []
    record = TrackingSpec(uri="sqlite:////shared/mlflow.db")
    assert kubernetes.problems(experiment(FULL, "/shared/store", tracking=record), FULL) == []


def test_data_never_becomes_structure():
    """A value that looks like YAML stays the text that it is."""
    values = {"name": "a: {b", "namespace": "n", "cluster": "c", "experiment": "x: [1\n${name}: 2\n"}
    made = fill("spec", values)
    assert yaml.safe_load(as_yaml(made))["data"]["experiment.yaml"] == values["experiment"]
    assert made["metadata"]["name"] == "a: {b"
