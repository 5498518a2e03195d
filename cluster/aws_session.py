"""The user's own way to AWS: boto3's chain of credentials, with its retries."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.aws_checks import Client
from cluster.aws_errors import explain

_CONFIG = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})


class AwsUnreachable(RuntimeError):
    """There is no way to AWS; the message has the way out."""


def session(region: str) -> tuple[Client, list[str]]:
    """What makes clients, and the regions of EC2 that boto3 knows.

    Raises:
        AwsUnreachable: if the user's settings name a profile that is not there.
    """
    try:
        made = boto3.Session()
        regions: list[str] = made.get_available_regions("ec2")
    except BotoCoreError as error:
        raise AwsUnreachable(explain(error, "sts:GetCallerIdentity", region)) from error

    def client(service: str, where: str) -> Any:
        anything: Any = made.client  # typed by literal names of services
        return anything(service, region_name=where, config=_CONFIG)

    return client, regions


def head_address(config: dict[str, Any]) -> str:
    """Public address of the head node of a launcher's cluster.

    Raises:
        AwsUnreachable: if AWS cannot be asked.
        RuntimeError: if there is no head.
    """
    from ray.autoscaler.sdk import get_head_node_ip

    try:
        address: str = get_head_node_ip(config)
    except (BotoCoreError, ClientError) as error:
        raise AwsUnreachable(explain(error, "ec2:DescribeInstances", config["provider"]["region"])) from error
    return address
