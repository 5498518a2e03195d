"""What AWS refused, in words that say what to do."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

from cluster.aws_codes import (
    BAD_SETTINGS,
    BAD_SIGNATURE,
    DENIED,
    EXPIRED,
    NO_ANSWER,
    NO_CREDENTIALS,
    SIGNED_OUT,
    SKEWED,
    UNKNOWN_KEY,
    code_of,
)

_OPT_IN = ("OptInRequired", "SubscriptionRequiredException")
_CLOCK_WORDS = ("signature expired", "signature not yet current", "too skewed")


def explain(error: BotoCoreError | ClientError, action: str, region: str) -> str:
    """One sentence on what failed, and one on the way out; never a secret.

    Args:
        error: what boto3 raised.
        action: IAM name of what was tried, for example `ec2:DescribeImages`.
        region: where it was tried.
    """
    if isinstance(error, ClientError):
        return _refused(error, action, region)
    if isinstance(error, NO_CREDENTIALS):
        return (
            "no AWS credentials were found, or only half of them. Run `aws configure` or `aws sso login`, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
        )
    if isinstance(error, SIGNED_OUT):
        return "the AWS sign-in has ended. Run `aws sso login` again"
    if isinstance(error, (*BAD_SETTINGS, NoRegionError)):
        return f"{str(error).rstrip('.')}. Check AWS_PROFILE and `~/.aws/config`"
    if isinstance(error, NO_ANSWER):
        return (
            f"AWS does not answer in `{region}` ({action}). Check the network (a proxy needs HTTPS_PROXY), and that "
            "`cluster.region` is written right"
        )
    return f"{action} failed: {str(error).rstrip('.')}"


def _refused(error: ClientError, action: str, region: str) -> str:
    code, said = code_of(error), str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    if code in SKEWED or (code in BAD_SIGNATURE and any(words in said.lower() for words in _CLOCK_WORDS)):
        return (
            "this machine's clock differs from AWS's by minutes, so AWS refuses it. Set it (`timedatectl set-ntp true`)"
        )
    if code in EXPIRED:
        return "the AWS credentials have expired. Get new ones (`aws sso login`, or a new session token)"
    if code in UNKNOWN_KEY or code in BAD_SIGNATURE:
        return (
            "AWS does not know these credentials, or their secret is wrong. Run `aws configure`, or check AWS_PROFILE"
        )
    if code in DENIED:
        return f"these AWS credentials may not do `{action}`. Ask for that permission (`docs/clusters.md` lists all)"
    if code in _OPT_IN:
        return f"the region `{region}` is not enabled for this account. Enable it in the AWS console, or take another"
    return f"{action} failed: {code}: {said}"
