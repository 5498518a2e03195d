"""What AWS refused, in words that say what to do."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

_MISSING = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_SIGNED_OUT = (SSOTokenLoadError, TokenRetrievalError, UnauthorizedSSOTokenError)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_SKEWED = ("RequestTimeTooSkewed", "RequestInTheFuture")
_UNKNOWN_KEY = ("InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure", "InvalidAccessKeyId")
_BAD_SIGNATURE = ("SignatureDoesNotMatch", "InvalidSignatureException")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
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
    if isinstance(error, _MISSING):
        return (
            "no AWS credentials were found, or only half of them. Run `aws configure` or `aws sso login`, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
        )
    if isinstance(error, _SIGNED_OUT):
        return "the AWS sign-in has ended. Run `aws sso login` again"
    if isinstance(error, (ProfileNotFound, NoRegionError)):
        return f"{str(error).rstrip('.')}. Check AWS_PROFILE and `~/.aws/config`"
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return (
            f"AWS does not answer in `{region}` ({action}). Check the network (a proxy needs HTTPS_PROXY), and that "
            "`cluster.region` is written right"
        )
    return f"{action} failed: {str(error).rstrip('.')}"


def code_of(error: ClientError) -> str:
    """AWS's name for an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _refused(error: ClientError, action: str, region: str) -> str:
    code, said = code_of(error), str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    if code in _SKEWED or (code in _BAD_SIGNATURE and any(words in said.lower() for words in _CLOCK_WORDS)):
        return (
            "this machine's clock differs from AWS's by minutes, so AWS refuses it. Set it (`timedatectl set-ntp true`)"
        )
    if code in _EXPIRED:
        return "the AWS credentials have expired. Get new ones (`aws sso login`, or a new session token)"
    if code in _UNKNOWN_KEY or code in _BAD_SIGNATURE:
        return (
            "AWS does not know these credentials, or their secret is wrong. Run `aws configure`, or check AWS_PROFILE"
        )
    if code in _DENIED:
        return f"these AWS credentials may not do `{action}`. Ask for that permission (`docs/clusters.md` lists all)"
    if code in _OPT_IN:
        return f"the region `{region}` is not enabled for this account. Enable it in the AWS console, or take another"
    return f"{action} failed: {code}: {said}"
