"""AWS: the launcher's configuration against Ray's own schema, and every question that is asked before a start.

moto stands in for AWS's control plane. What it does not know (quotas, prices, the public parameter of images) is
answered by botocore's Stubber, which checks questions and answers against AWS's own service models.
"""

from __future__ import annotations

import json
import re
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    SSOTokenLoadError,
)
from botocore.stub import ANY, Stubber
from moto import mock_aws

from cluster import aws
from cluster.aws_checks import Findings, Instance, ask
from cluster.aws_errors import explain
from orchestrator import aws_cluster
from orchestrator.errors import Interrupted, ResourceError
from specs.cluster import AwsCluster
from specs.data import Sample
from specs.experiment import Experiment, StageSpec, StorageSpec, TrackingSpec
from specs.model import ModelSpec
from specs.resources import ResourcesSpec

REGION = "eu-central-1"
REGIONS = ["eu-central-1", "eu-west-1", "us-east-1"]
AMI = "ami-0123456789abcdef0"


def cluster(**more: Any) -> AwsCluster:
    values = {"region": REGION, "worker_instance": "g4dn.xlarge", "max_workers": 3, "image": "example/slimvit:1"}
    return AwsCluster(kind="aws", **{**values, "instance_profile": "trainer", **more})


def experiment(wanted: AwsCluster, root: str = "s3://bucket/store", **more: Any) -> Experiment:
    return Experiment(
        name="grid",
        data=Sample(kind="sample"),
        student=ModelSpec(model="vit_tiny_patch16_224"),
        stages=[StageSpec(name="only")],
        cluster=wanted,
        **{"storage": StorageSpec(root=root), "tracking": TrackingSpec(uri="http://mlflow:5000"), **more},
    )


@pytest.fixture
def account(monkeypatch):
    """An account with a bucket and a profile; `.client` answers, quotas and prices are what the fixture's dict says."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        s3 = boto3.client("s3", region_name=REGION)
        s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
        iam = boto3.client("iam", region_name=REGION)
        iam.create_instance_profile(InstanceProfileName="trainer")
        yield Account()


class Account:
    """Clients of a pretended account."""

    def __init__(self) -> None:
        self.quotas = {"L-1216C47A": 64.0, "L-DB2E81BA": 64.0, "L-3819A6DF": 64.0, "L-34B43A08": 64.0}
        self.on_demand = {"m5.xlarge": 0.23, "g4dn.xlarge": 0.658}
        self.spot = {"eu-central-1a": 0.30, "eu-central-1b": 0.25}
        self.failing: dict[str, ClientError] = {}

    def client(self, service: str, region: str) -> Any:
        client = boto3.client(service, region_name=region)
        if service == "service-quotas":
            return _Answers(client, "get_service_quota", self._quota)
        if service == "pricing":
            assert region == "us-east-1"
            return _Answers(client, "get_products", self._price)
        if service == "ssm":
            return _Answers(client, "get_parameter", lambda _: {"Parameter": {"Name": "ami", "Value": AMI}})
        if service == "ec2":
            return _Ec2(client, self)
        return client

    def _quota(self, asked: dict[str, Any]) -> dict[str, Any]:
        value = self.quotas[asked["QuotaCode"]]
        return {"Quota": {"QuotaCode": asked["QuotaCode"], "QuotaName": "Running instances", "Value": value}}

    def _price(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = {entry["Field"]: entry["Value"] for entry in asked["Filters"]}
        assert wanted["regionCode"] == REGION
        free = {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}
        paid = {"unit": "Hrs", "pricePerUnit": {"USD": str(self.on_demand[wanted["instanceType"]])}}
        terms = {"OnDemand": {"a": {"priceDimensions": {"1": free}}, "b": {"priceDimensions": {"2": paid}}}}
        return {"FormatVersion": "aws_v1", "PriceList": [json.dumps({"terms": terms})]}


class _Answers:
    """A client whose one operation is answered by a Stubber, so that both sides are held against AWS's model."""

    def __init__(self, client: Any, operation: str, answer: Any) -> None:
        self._client, self._operation, self._answer = client, operation, answer

    def __getattr__(self, operation: str) -> Any:
        assert operation == self._operation

        def call(**asked: Any) -> Any:
            with Stubber(self._client) as stub:
                stub.add_response(operation, self._answer(asked), dict.fromkeys(asked, ANY))
                return getattr(self._client, operation)(**asked)

        return call


class _Ec2:
    """moto's EC2 with spot prices of ours, and with failures."""

    def __init__(self, client: Any, account: Account) -> None:
        self._client, self._account = client, account

    def __getattr__(self, operation: str) -> Any:
        if operation in self._account.failing:
            raise self._account.failing[operation]
        if operation != "describe_spot_price_history":
            return getattr(self._client, operation)
        history = [{"AvailabilityZone": zone, "SpotPrice": str(p)} for zone, p in self._account.spot.items()]
        return getattr(_Answers(self._client, operation, lambda _: {"SpotPriceHistory": history}), operation)


def findings(account: Account, wanted: AwsCluster, **more: Any) -> Findings:
    return ask(experiment(wanted, **more), wanted, account.client, regions=REGIONS)


def test_nothing_is_held_against_what_can_be_had(account):
    found = findings(account, cluster())
    assert found.problems == []
    assert found.notes == []
    assert found.ami == AMI
    assert found.head == Instance("m5.xlarge", 4, 0)
    assert found.worker == Instance("g4dn.xlarge", 4, 1)
    assert (found.head_price, found.worker_price) == (0.23, 0.25)
    left = boto3.client("s3", region_name=REGION).list_objects_v2(Bucket="bucket")
    assert left["KeyCount"] == 0, "the probe is removed"


@pytest.mark.parametrize(
    ("wanted", "more", "said"),
    [
        ({"worker_instance": "g4dn.huge"}, {}, "no instance type"),
        ({"availability_zones": ["eu-central-1z"]}, {}, "not offered in eu-central-1z, but in eu-central-1"),
        ({"max_workers": 17}, {}, "68 virtual CPUs .* is 64"),
        ({"ami": "ami-00000000000000000"}, {}, "is not in `eu-central-1`"),
        ({"max_price": 0.1}, {}, "costs 0.25 .* is 0.1"),
        ({"key_name": "mine", "ssh_private_key": "/no/such/key"}, {}, "no key pair"),
        ({"key_name": "mine", "ssh_private_key": "/no/such/key"}, {}, "is no file"),
        ({"instance_profile": "nobody"}, {}, "no instance profile"),
        ({"instance_profile": None}, {}, "have no right"),
        ({}, {"root": "s3://elsewhere/x"}, "no bucket `elsewhere`"),
        ({"region": "eu-west-1"}, {}, "is in `eu-central-1`, the nodes would be in `eu-west-1`"),
        ({"region": "eu-centrl-1"}, {}, "did you mean `eu-central-1`"),
        ({}, {"root": "/store"}, "a folder that the nodes do not share"),
        ({}, {"tracking": TrackingSpec(uri="sqlite:///mlflow.db")}, "end with it"),
    ],
)
def test_each_problem_is_named_with_its_way_out(account, monkeypatch, wanted, more, said):
    if wanted.get("region") == "eu-west-1":
        monkeypatch.setattr(account, "_price", lambda asked: {"FormatVersion": "aws_v1", "PriceList": []})
    found = findings(account, cluster(**wanted), **more)
    assert any(re.search(said, problem) for problem in found.problems), found.problems


def test_all_problems_come_at_once(account):
    found = findings(
        account, cluster(worker_instance="g4dn.huge", ami="ami-0", instance_profile=None), root="s3://none/x"
    )
    assert len(found.problems) == 4


def test_head_and_workers_of_one_family_share_a_quota(account):
    account.quotas["L-1216C47A"] = 15.0
    wanted = cluster(worker_instance="m5.xlarge", spot=False)
    (problem,) = findings(account, wanted).problems
    assert problem.startswith("16 virtual CPUs are wanted")
    assert findings(account, wanted.model_copy(update={"max_workers": 2})).problems == []


def test_a_spot_price_of_another_zone_does_not_count(account):
    assert findings(account, cluster(availability_zones=["eu-central-1a"])).worker_price == 0.30


def test_a_missing_permission_is_named(account):
    error = ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, "DescribeSpotPriceHistory")
    account.failing["describe_spot_price_history"] = error
    found = findings(account, cluster())
    assert found.problems == []
    assert found.worker_price is None
    assert "may not do `ec2:DescribeSpotPriceHistory`" in found.notes[0]
    account.failing["describe_instance_types"] = error
    assert any("may not do `ec2:DescribeInstanceTypes`" in p for p in findings(account, cluster()).problems)


def refusal(code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "GetCallerIdentity")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError(), "aws configure"),
        (SSOTokenLoadError(error_msg="x"), "aws sso login"),
        (refusal("ExpiredToken"), "have expired"),
        (refusal("RequestExpired"), "have expired"),
        (refusal("InvalidClientTokenId"), "does not know these credentials"),
        (refusal("SignatureDoesNotMatch", "the secret"), "secret is wrong"),
        (refusal("SignatureDoesNotMatch", "Signature expired: 1 is now earlier than 2"), "clock"),
        (refusal("RequestTimeTooSkewed"), "clock"),
        (refusal("AccessDenied"), "may not do `ec2:X`"),
        (refusal("OptInRequired"), "not enabled"),
        (refusal("Strange", "thing."), "ec2:X failed: Strange: thing"),
        (EndpointConnectionError(endpoint_url="https://ec2"), "does not answer in `eu-central-1`"),
    ],
)
def test_every_failure_says_what_to_do(error, said):
    assert said in explain(error, "ec2:X", REGION)


def test_without_credentials_nothing_else_is_asked(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    wanted = cluster()
    session = boto3.Session()
    found = ask(experiment(wanted), wanted, lambda s, r: session.client(s, region_name=r), regions=REGIONS)
    assert len(found.problems) == 1
    assert "no AWS credentials" in found.problems[0]


def test_a_profile_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    wanted = cluster()
    with pytest.raises(ResourceError, match=r"nobody.*AWS_PROFILE"):
        aws_cluster.up(experiment(wanted), wanted, confirm=lambda _: True, dry_run=False, write=str)


SPECS = {
    "spot": cluster(max_price=0.5, availability_zones=["eu-central-1a", "eu-central-1b"], ami=AMI),
    "on demand": cluster(spot=False, min_workers=1, key_name="mine", ssh_private_key="/home/me/key.pem", name="team"),
    "bare": cluster(instance_profile=None),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_configuration_is_what_rays_schema_takes(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    wanted = SPECS[name]
    config = aws.launcher_config(experiment(wanted), wanted, AMI)
    full = prepare_config(json.loads(json.dumps(config)))
    validate_config(full)
    worker = full["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (wanted.min_workers, 3)
    assert full["available_node_types"]["head"]["max_workers"] == 0
    assert "MarketType" not in json.dumps(full["available_node_types"]["head"])
    assert ("InstanceMarketOptions" in worker["node_config"]) is wanted.spot
    starts = [c for c in (*full["head_start_ray_commands"], *full["worker_start_ray_commands"]) if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_a_limit_on_the_price_reaches_aws():
    config = aws.launcher_config(experiment(SPECS["spot"]), SPECS["spot"])
    options = config["available_node_types"]["worker"]["node_config"]["InstanceMarketOptions"]
    assert options == {"MarketType": "spot", "SpotOptions": {"MaxPrice": "0.5"}}
    assert config["provider"]["availability_zone"] == "eu-central-1a,eu-central-1b"


def test_a_configuration_that_ray_refuses_is_noticed():
    config = aws.launcher_config(experiment(SPECS["bare"]), SPECS["bare"])
    with pytest.raises(Exception, match="max_worker"):
        aws.check({**config, "max_worker": 3})


@pytest.fixture
def started(account, monkeypatch, tmp_path):
    """What the launcher was asked to start; nothing is started."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(aws_cluster, "session", lambda region: (account.client, REGIONS))
    monkeypatch.setattr(aws_cluster, "make_token", lambda: None)
    monkeypatch.setattr(aws, "start", calls.append)
    monkeypatch.setattr(aws_cluster, "head_address", lambda config: "203.0.113.9")
    return calls


def test_the_cost_is_shown_before_anything_starts(started):
    wanted, shown = cluster(min_workers=1), []
    with pytest.raises(Interrupted):
        aws_cluster.up(experiment(wanted), wanted, confirm=shown.append, dry_run=False, write=str)  # type: ignore[arg-type]
    assert started == []
    # 0.23 + 1 × 0.25, and 0.23 + 3 × 0.25
    assert "Together 0.48 to 0.98 US dollars an hour" in shown[0]


def test_a_confirmed_start_uses_the_image_that_was_found(started):
    wanted = cluster()
    said = aws_cluster.up(experiment(wanted), wanted, confirm=lambda _: True, dry_run=False, write=str)
    assert started[0]["available_node_types"]["worker"]["node_config"]["ImageId"] == AMI
    assert "ssh -N -L 8265:127.0.0.1:8265 ubuntu@203.0.113.9" in said
    # Four workers of one CPU each on a node share its price.
    from cluster.state import recall

    assert recall(aws_cluster.PRICES, "grid")["worker"] == pytest.approx(0.25 / 4)


def test_a_node_that_holds_no_worker_is_a_problem(started):
    wanted = cluster()
    with pytest.raises(ResourceError, match="holds no worker of 8 CPUs"):
        aws_cluster.up(
            experiment(wanted, resources=ResourcesSpec(cpus_per_worker=8)),
            wanted,
            confirm=lambda _: True,
            dry_run=False,
            write=str,
        )
    assert started == []


@pytest.mark.parametrize(
    ("resources", "workers"), [({}, 4), ({"gpus_per_worker": 1}, 1), ({"gpus_per_worker": 0.1}, 4)]
)
def test_workers_on_a_node(resources, workers):
    assert aws_cluster.workers_on(Instance("g4dn.xlarge", 4, 1), ResourcesSpec(**resources)) == workers
