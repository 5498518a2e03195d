"""Where a run's machines come from: this machine, a cluster that is there already, AWS or Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from specs.base import SpecModel

DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""Kubernetes and AWS take no other names; longer ones leave no room for what they append."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Name of a Kubernetes object."""


class _Cluster(SpecModel):
    name: DnsLabel | None = None
    """Name of the cluster: small letters, digits and `-`; `null` = made from the experiment's name."""

    price_per_hour: NonNegativeFloat | None = None
    """Price of one worker (one process with its share of a node) in US dollars an hour, for estimates; `null` = what
    AWS says for `kind: aws`, else no cost is shown."""


class LocalCluster(_Cluster):
    """A Ray cluster on this machine that stays up between runs."""

    kind: Literal["local"]
    """Marks this kind of cluster."""

    cpus: PositiveInt | None = None
    """CPU cores that it offers; `null` = those this user's processes may use."""

    gpus: NonNegativeInt | None = None
    """GPUs that it offers; `null` = all that Ray finds."""

    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 8265
    """Port of the dashboard on loopback; 0 = any free one."""


class AddressCluster(_Cluster):
    """A Ray cluster that somebody else started and ends."""

    kind: Literal["address"]
    """Marks this kind of cluster."""

    address: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}$")]
    """`HOST:PORT` of its control service, as `ray start --head` printed it; this machine must be one of its nodes."""


class AwsCluster(_Cluster):
    """Machines at AWS, started by Ray's cluster launcher. The artefact store's bucket is that of `storage.root`."""

    kind: Literal["aws"]
    """Marks this kind of cluster."""

    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")]
    """AWS region, for example `eu-central-1`; the bucket must be in it."""

    availability_zones: list[str] = Field(default_factory=list)
    """Zones of the region in the order in which they are tried, for example `eu-central-1a`; none = any."""

    head_instance: Annotated[str, Field(min_length=1)] = "m5.xlarge"
    """Instance type of the head node, which trains nothing and is always paid on demand."""

    worker_instance: Annotated[str, Field(min_length=1)]
    """Instance type of the worker nodes."""

    min_workers: NonNegativeInt = 0
    """Worker nodes that run from the start and stay when idle."""

    max_workers: PositiveInt
    """Worker nodes at most."""

    spot: bool = True
    """Whether workers are spot instances, which AWS may take back; a stage then goes on from its last checkpoint."""

    max_price: PositiveFloat | None = None
    """Highest price paid for a spot worker node, in US dollars an hour; `null` = up to the on-demand price."""

    ami: Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")] | None = None
    """Machine image of all nodes; `null` = the newest AWS Deep Learning base image (Ubuntu 22.04, NVIDIA driver)."""

    disk_gb: PositiveInt = 200
    """Size of each node's disk, in GB."""

    key_name: Annotated[str, Field(min_length=1)] | None = None
    """EC2 key pair for SSH; `null` = the launcher makes one and keeps it in `~/.ssh`. Goes with `ssh_private_key`."""

    ssh_private_key: Annotated[str, Field(min_length=1)] | None = None
    """Path of the private key that belongs to `key_name`; `~` and `${VARIABLE}` are expanded."""

    ssh_user: Annotated[str, Field(min_length=1)] = "ubuntu"
    """User of the machine image that SSH logs in as."""

    instance_profile: Annotated[str, Field(min_length=1)] | None = None
    """IAM instance profile of all nodes: it must allow the bucket, and on the head also EC2. `null` = the launcher
    makes one for the head only, which suits no store in S3."""

    image: Annotated[str, Field(min_length=1)]
    """Docker image with slimvit in it (see `Dockerfile`), which every node pulls."""

    idle_minutes: PositiveFloat = 5.0
    """Minutes after which an idle worker node above `min_workers` is given back."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"`min_workers` is {self.min_workers}, `max_workers` only {self.max_workers}; raise it")
        if (self.key_name is None) != (self.ssh_private_key is None):
            raise ValueError("`key_name` and `ssh_private_key` belong together; give both, or neither")
        if self.max_price is not None and not self.spot:
            raise ValueError("`max_price` is a limit for spot instances; leave it out with `spot: false`")
        for zone in self.availability_zones:
            if not zone.startswith(self.region):
                raise ValueError(f"`{zone}` is no availability zone of `{self.region}`; its names begin with that")
        return self


class Toleration(SpecModel):
    """A taint of Kubernetes nodes that the pods put up with."""

    key: Annotated[str, Field(min_length=1)]
    """Key of the taint, for example `nvidia.com/gpu`."""

    operator: Literal["Exists", "Equal"] = "Exists"
    """`Exists` takes every value of the taint, `Equal` only `value`."""

    value: str | None = None
    """Value of the taint, with `operator: Equal`."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; `null` = all effects."""

    @model_validator(mode="after")
    def _value_when_equal(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("`value` belongs to `operator: Equal`, and `Equal` needs one")
        return self


class KubernetesCluster(_Cluster):
    """Pods on Kubernetes, kept by the KubeRay operator. Secrets are named here, never written here."""

    kind: Literal["kubernetes"]
    """Marks this kind of cluster."""

    namespace: ObjectName = "default"
    """Namespace of everything that is made."""

    image: Annotated[str, Field(min_length=1)]
    """Docker image with slimvit in it (see `Dockerfile`), of all pods."""

    min_workers: NonNegativeInt = 0
    """Worker pods that run from the start and stay when idle."""

    max_workers: PositiveInt
    """Worker pods at most."""

    cpus: PositiveInt | None = None
    """CPU cores of a worker pod; `null` = `resources.cpus_per_worker`, one worker a pod."""

    gpus: NonNegativeInt | None = None
    """GPUs of a worker pod; `null` = `resources.gpus_per_worker`, rounded up."""

    memory_gib: PositiveInt = 16
    """Memory of a worker pod, in GiB; it gets that, and is ended if it takes more."""

    head_cpus: PositiveInt = 2
    """CPU cores of the head pod, which trains nothing."""

    head_memory_gib: PositiveInt = 8
    """Memory of the head pod, in GiB."""

    gpu_resource: Annotated[str, Field(min_length=1)] = "nvidia.com/gpu"
    """Name under which the nodes offer GPUs."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have to get a worker pod."""

    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of nodes that worker pods put up with."""

    service_account: ObjectName | None = None
    """Service account of all pods, which gives them their rights to the bucket; `null` = one that KubeRay makes."""

    storage_class: ObjectName | None = None
    """Storage class of a volume that all pods share (it must allow ReadWriteMany), mounted at `storage.root`'s
    folder; `null` = no volume, for a store in S3."""

    storage_gb: PositiveInt = 100
    """Size of that volume, in GB."""

    token_secret: ObjectName | None = None
    """Secret with Ray's token under the key `auth_token`; `null` = KubeRay makes one for the cluster."""

    env_secrets: list[ObjectName] = Field(default_factory=list)
    """Secrets whose keys become environment variables of all pods, for example credentials of S3."""

    retries: NonNegativeInt = 3
    """How often a run that ended in failure is started anew; it goes on from what the store has."""

    idle_minutes: PositiveFloat = 5.0
    """Minutes after which an idle worker pod above `min_workers` is given back."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"`min_workers` is {self.min_workers}, `max_workers` only {self.max_workers}; raise it")
        return self


ClusterSpec = Annotated[LocalCluster | AddressCluster | AwsCluster | KubernetesCluster, Field(discriminator="kind")]


def cluster_name(cluster: ClusterSpec, experiment: str) -> str:
    """The cluster's name, or one made from the experiment's: small letters, digits and `-`, a letter first."""
    if cluster.name is not None:
        return cluster.name
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in experiment.lower()).strip("-")
    return (letters if letters[:1].isalpha() else f"x{letters}")[:40].rstrip("-")
