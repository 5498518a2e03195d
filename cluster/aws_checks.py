"""Ask AWS, before anything is started, whether what a spec wants can be had there, and what it costs.

Every question is asked, whatever became of the others, so that all problems come at once.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from cluster import aws_prices
from cluster.aws import NEWEST_AMI
from cluster.aws_codes import code_of
from cluster.aws_errors import explain
from specs.address import Address
from specs.cluster import AwsCluster
from specs.experiment import Experiment
from specs.problems import nearest

T = TypeVar("T")
Client = Callable[[str, str], Any]
"""(service, region) → boto3 client."""

_QUOTAS = {
    "standard": ("L-1216C47A", "L-34B43A08"),
    "g": ("L-DB2E81BA", "L-3819A6DF"),
    "p": ("L-417A185B", "L-7212CCBC"),
    "f": ("L-74FC7D96", "L-88CF9481"),
    "x": ("L-7295265B", "L-E3A00192"),
    "inf": ("L-1945791B", "L-B5D1601B"),
    "trn": ("L-2C3B7624", "L-6B0D517C"),
    "dl": ("L-6E869C2A", "L-85EED4F7"),
}
"""Family of instances → code of its quota of virtual CPUs, on demand and spot."""


@dataclass(frozen=True)
class Instance:
    """An instance type."""

    name: str
    vcpus: int
    gpus: int


@dataclass
class Findings:
    """What AWS answered."""

    problems: list[str] = field(default_factory=list)
    """Why it cannot be started, each with its way out."""
    notes: list[str] = field(default_factory=list)
    """What could not be found out and stops nothing."""
    account: str | None = None
    ami: str | None = None
    head: Instance | None = None
    worker: Instance | None = None
    head_price: float | None = None
    """US dollars an hour."""
    worker_price: float | None = None
    """US dollars an hour of one node: the spot price now, or the price on demand."""


def ask(experiment: Experiment, cluster: AwsCluster, client: Client, *, regions: list[str]) -> Findings:
    """Put all questions.

    Args:
        experiment: whose store has to be reachable.
        cluster: what is wanted.
        client: makes boto3's clients.
        regions: of EC2, as boto3 knows them.
    """
    found = Findings()
    if cluster.region not in regions:
        near = nearest(cluster.region, regions)
        found.problems.append(
            f"`cluster.region: {cluster.region}` is no AWS region" + (f"; did you mean `{near}`?" if near else "")
        )
        return found
    asker = _Asker(cluster, client, found)
    identity = asker.ask("sts:GetCallerIdentity", lambda: asker.client("sts").get_caller_identity())
    if identity is None:
        return found  # without credentials or a way to AWS every other answer would be the same
    found.account = identity["Account"]
    asker.instances()
    asker.quotas()
    asker.image()
    asker.prices()
    asker.access()
    asker.store(experiment)
    return found


class _Asker:
    """The questions about one cluster; answers and problems go into its findings."""

    def __init__(self, cluster: AwsCluster, client: Client, found: Findings) -> None:
        self.cluster, self.found, self._client = cluster, found, client

    def client(self, service: str, region: str | None = None) -> Any:
        return self._client(service, region or self.cluster.region)

    def ask(self, action: str, question: Callable[[], T], *, only_note: str | None = None) -> T | None:
        """The answer, or `None` and a problem (a note, if without the answer only `only_note`)."""
        try:
            return question()
        except (BotoCoreError, ClientError) as error:
            text = explain(error, action, self.cluster.region)
            if only_note is not None:
                self.found.notes.append(f"{only_note}: {text}")
            elif text not in self.found.problems:
                self.found.problems.append(text)
            return None

    def instances(self) -> None:
        """Do both types exist, and are they offered where the nodes are to be?"""
        self.found.head = self._instance("head_instance", self.cluster.head_instance)
        self.found.worker = self._instance("worker_instance", self.cluster.worker_instance)

    def _instance(self, option: str, name: str) -> Instance | None:
        ec2 = self.client("ec2")
        try:
            types = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        except ClientError as error:
            if code_of(error) not in ("InvalidInstanceType", "InvalidParameterValue"):
                self.found.problems.append(explain(error, "ec2:DescribeInstanceTypes", self.cluster.region))
                return None
            types = []
        except BotoCoreError as error:
            self.found.problems.append(explain(error, "ec2:DescribeInstanceTypes", self.cluster.region))
            return None
        if not types:
            self.found.problems.append(
                f"`cluster.{option}: {name}` is no instance type of `{self.cluster.region}`; correct it, or take "
                "another region"
            )
            return None
        self._offered(option, name)
        gpus = sum(int(gpu["Count"]) for gpu in types[0].get("GpuInfo", {}).get("Gpus", []))
        return Instance(name, int(types[0]["VCpuInfo"]["DefaultVCpus"]), gpus)

    def _offered(self, option: str, name: str) -> None:
        found = self.ask(
            "ec2:DescribeInstanceTypeOfferings",
            lambda: self.client("ec2").describe_instance_type_offerings(
                LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [name]}]
            ),
        )
        if found is None:
            return
        zones = sorted(offer["Location"] for offer in found["InstanceTypeOfferings"])
        wanted = self.cluster.availability_zones
        if not zones:
            self.found.problems.append(f"`cluster.{option}: {name}` is offered nowhere in `{self.cluster.region}`")
        elif wanted and not set(wanted) & set(zones):
            self.found.problems.append(
                f"`cluster.{option}: {name}` is not offered in {', '.join(wanted)}, but in {', '.join(zones)}; change "
                "`cluster.availability_zones`"
            )

    def quotas(self) -> None:
        """May the account have so many virtual CPUs?"""
        head, worker = self.found.head, self.found.worker
        wanted: dict[str, float] = {}
        for instance, count, spot in ((head, 1, False), (worker, self.cluster.max_workers, self.cluster.spot)):
            if instance is not None:
                code = _QUOTAS[_family(instance.name)][spot]
                wanted[code] = wanted.get(code, 0) + count * instance.vcpus
        for code, vcpus in wanted.items():
            quota = self.ask(
                "servicequotas:GetServiceQuota",
                lambda code=code: self.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code),  # type: ignore[misc]
                only_note="whether the quota of virtual CPUs suffices is not known",
            )
            if quota is not None and quota["Quota"]["Value"] < vcpus:
                self.found.problems.append(
                    f"{vcpus:g} virtual CPUs are wanted, and the quota `{quota['Quota']['QuotaName']}` ({code}) of "
                    f"this account in `{self.cluster.region}` is {quota['Quota']['Value']:g}. Ask AWS for more "
                    "(Service Quotas in the console), or lower `cluster.max_workers`"
                )

    def image(self) -> None:
        """Is the machine image there; which is the newest?"""
        given = self.cluster.ami
        if given is None:
            answer = self.ask(
                "ssm:GetParameter",
                lambda: self.client("ssm").get_parameter(Name=NEWEST_AMI)["Parameter"]["Value"],
            )
            self.found.ami = None if answer is None else str(answer)
            return
        try:
            images = self.client("ec2").describe_images(ImageIds=[given])["Images"]
        except ClientError as error:
            if not code_of(error).startswith("InvalidAMIID"):
                self.found.problems.append(explain(error, "ec2:DescribeImages", self.cluster.region))
                return
            images = []
        except BotoCoreError as error:
            self.found.problems.append(explain(error, "ec2:DescribeImages", self.cluster.region))
            return
        if images:
            self.found.ami = given
        else:
            self.found.problems.append(
                f"`cluster.ami: {given}` is not in `{self.cluster.region}` (images belong to one region). Take one of "
                "that region, or leave it out"
            )

    def prices(self) -> None:
        """What do the nodes cost?"""
        pricing = self.client("pricing", aws_prices.PRICING_REGION)
        region, unknown = self.cluster.region, "the price on demand is not known"
        head, worker = self.found.head, self.found.worker
        if head is not None:
            self.found.head_price = self.ask(
                "pricing:GetProducts", lambda: aws_prices.on_demand(pricing, head.name, region), only_note=unknown
            )
        if worker is None:
            return
        if not self.cluster.spot:
            self.found.worker_price = self.ask(
                "pricing:GetProducts", lambda: aws_prices.on_demand(pricing, worker.name, region), only_note=unknown
            )
            return
        zones, now = self.cluster.availability_zones, datetime.datetime.now(datetime.UTC)
        price = self.found.worker_price = self.ask(
            "ec2:DescribeSpotPriceHistory",
            lambda: aws_prices.spot(self.client("ec2"), worker.name, zones, now),
            only_note="the spot price is not known",
        )
        limit = self.cluster.max_price
        if price is not None and limit is not None and price > limit:
            self.found.problems.append(
                f"`{worker.name}` costs {price:.4g} US dollars an hour as a spot instance now, and `cluster.max_price` "
                f"is {limit:g}: none would start. Raise it, or take another instance type or zone"
            )

    def access(self) -> None:
        """Are the key pair and the instance profile there?"""
        key, profile = self.cluster.key_name, self.cluster.instance_profile
        if key is not None:
            self._exists(
                "ec2:DescribeKeyPairs",
                lambda: self.client("ec2").describe_key_pairs(KeyNames=[key]),
                "InvalidKeyPair.NotFound",
                f"`cluster.key_name: {key}` is no key pair of `{self.cluster.region}`; make or import it there",
            )
        file = self.cluster.ssh_private_key
        if file is not None and not Path(file).is_file():
            self.found.problems.append(f"`cluster.ssh_private_key: {file}` is no file; correct the path")
        if profile is not None:
            self._exists(
                "iam:GetInstanceProfile",
                lambda: self.client("iam").get_instance_profile(InstanceProfileName=profile),
                "NoSuchEntity",
                f"`cluster.instance_profile: {profile}` is no instance profile of this account; make it, or correct it",
            )

    def _exists(self, action: str, question: Callable[[], Any], missing: str, problem: str) -> None:
        try:
            question()
        except ClientError as error:
            found = problem if code_of(error) == missing else explain(error, action, self.cluster.region)
            self.found.problems.append(found)
        except BotoCoreError as error:
            self.found.problems.append(explain(error, action, self.cluster.region))

    def store(self, experiment: Experiment) -> None:
        """Is the bucket there, in this region, and can it be written?"""
        root, record = experiment.storage.root, experiment.tracking.uri
        if record.startswith("sqlite:///"):
            self.found.problems.append(
                f"`tracking.uri: {record}` would be a file on the head node, and end with it. Set it to the address of "
                "an MLflow server (`http://HOST:PORT`)"
            )
        if not root.startswith("s3://"):
            self.found.problems.append(
                f"`storage.root: {root}` is a folder that the nodes do not share. Set it to `s3://BUCKET/PREFIX`"
            )
            return
        place = Address.parse(root, experiment.storage.endpoint)
        if place.endpoint is not None:  # not Amazon's: `slimvit run` asks it
            return
        if self.cluster.instance_profile is None:
            self.found.problems.append(
                f"the worker nodes have no right to `{root}`. Set `cluster.instance_profile` to an IAM instance "
                "profile that allows it (`docs/clusters.md`)"
            )
        self._bucket(place)

    def _bucket(self, address: Address) -> None:
        bucket = address.bucket
        s3, region = self.client("s3"), self.cluster.region
        try:
            place = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1"
        except ClientError as error:
            missing = code_of(error) in ("NoSuchBucket", "404")
            self.found.problems.append(
                f"there is no bucket `{bucket}` (`storage.root`). Make it: aws s3 mb s3://{bucket} --region {region}"
                if missing
                else explain(error, f"s3:GetBucketLocation on {bucket}", region)
            )
            return
        except BotoCoreError as error:
            self.found.problems.append(explain(error, f"s3:GetBucketLocation on {bucket}", region))
            return
        if place != region:
            self.found.problems.append(
                f"the bucket `{bucket}` is in `{place}`, the nodes would be in `{region}`: slow, and each byte is paid "
                f"for. Set `cluster.region: {place}`, or take a bucket in `{region}`"
            )
            return
        key = address.key(f".slimvit-probe-{uuid.uuid4().hex}")
        written = self.ask(f"s3:PutObject on {bucket}", lambda: s3.put_object(Bucket=bucket, Key=key, Body=b""))
        if written is not None:
            self.ask(f"s3:DeleteObject on {bucket}", lambda: s3.delete_object(Bucket=bucket, Key=key))


def _family(instance: str) -> str:
    """Which quota an instance type counts against: `g5.xlarge` → `g`, `m5.xlarge` → `standard`."""
    for family in ("inf", "trn", "dl"):
        if instance.startswith(family):
            return family
    return {"g": "g", "v": "g", "p": "p", "f": "f", "x": "x"}.get(instance[:1], "standard")
