"""What S3 and its client say, as messages that tell a person what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boto3.exceptions import Boto3Error
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

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
from cluster.storage import StoreUnavailable
from specs.address import Address
from specs.words import counted

_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN with temporary ones), or AWS_PROFILE, or "
    "give the machine a role. Every worker needs them, not only this process"
)
_OUR_SIDE = (*NO_CREDENTIALS, *SIGNED_OUT, *BAD_SETTINGS)
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_RACED = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


def absent(error: ClientError) -> bool:
    """Whether it says that there is no such object."""
    return code_of(error) in _ABSENT


def raced(error: ClientError) -> bool:
    """Whether somebody else wrote first."""
    return code_of(error) in _RACED


@contextmanager
def explained(doing: str, where: Address) -> Iterator[None]:
    """Within this block, whatever S3 says becomes a `StoreUnavailable`.

    Args:
        doing: what is attempted, as in `cannot …`.
        where: the place.
    """
    try:
        yield
    except StoreUnavailable:
        raise
    except ClientError as error:
        raise StoreUnavailable(f"cannot {doing} {where}: {_answer(error, where)}") from error
    except RecursionError as error:  # botocore follows redirects to regions without counting them
        raise StoreUnavailable(
            f"cannot {doing} {where}: {_endpoint(where)} sends every request elsewhere and does not say to which "
            "region. Set AWS_DEFAULT_REGION to the bucket's region, and check `endpoint`"
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StoreUnavailable(f"cannot {doing} {where}: {_no_answer(error, where)}") from error


def _no_answer(error: Exception, where: Address) -> str:
    text = str(error).rstrip(".")
    if isinstance(error, _OUR_SIDE):
        return f"there are no usable credentials ({text}). {_CREDENTIALS}"
    if isinstance(error, boto.SSLError):
        return (
            f"the certificate of {_endpoint(where)} is not accepted ({text}). Set AWS_CA_BUNDLE to the file with the "
            "certificate of its authority"
        )
    if isinstance(error, NO_ANSWER):
        return (
            f"{_endpoint(where)} does not answer ({text}). Check the address (`endpoint`, or AWS_ENDPOINT_URL), the "
            "network, and that it is reached from the workers too; running the same command again goes on"
        )
    if isinstance(error, boto.NoRegionError | boto.InvalidRegionError):
        return f"{text}. Set AWS_DEFAULT_REGION to the region of the bucket"
    return f"{type(error).__name__}: {text}"


def _answer(error: ClientError, where: Address) -> str:
    """For an answer that is an error."""
    code, action = code_of(error), error.operation_name
    details: dict[str, Any] = error.response.get("Error", {})
    said = str(details.get("Message", "")).rstrip(".")
    if code == "NoSuchBucket":
        return (
            f"there is no bucket `{where.bucket}` at {_endpoint(where)}. Check the name, make the bucket (`aws s3 mb "
            f"s3://{where.bucket}`), or set `endpoint` if it lies elsewhere than at Amazon"
        )
    if code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        region = _region(error)
        right = (
            f"It lies in `{region}`: set AWS_DEFAULT_REGION={region}"
            if region
            else "Set AWS_DEFAULT_REGION to the bucket's region"
        )
        return f"the bucket `{where.bucket}` lies in another region than the one that was asked. {right}"
    if code in SKEWED:
        times = [str(details[key]) for key in ("RequestTime", "ServerTime") if key in details]
        shown = f" (here {times[0]}, there {times[1]})" if len(times) == 2 else ""
        return (
            f"the clock of this machine differs too much from the store's{shown}; S3 allows 15 minutes. Set the clock "
            "(`timedatectl set-ntp true`) and run the same command again"
        )
    if code in UNKNOWN_KEY | BAD_SIGNATURE:
        return f"the credentials are not valid there ({code}). {_CREDENTIALS}"
    if code in EXPIRED:
        return (
            "the credentials have expired. Get new ones (`aws sso login`, or new AWS_… variables) and run the same "
            "command again; it goes on from what is committed"
        )
    if code in DENIED:
        permission = _PERMISSIONS.get(action, action)
        return (
            f"no permission for `s3:{permission}` ({said or code}). Allow it for these credentials on "
            f"`arn:aws:s3:::{where.bucket}` and `arn:aws:s3:::{where.bucket}/*`, or use other credentials"
        )
    if code in ("NotImplemented", "501", "MethodNotAllowed"):
        return (
            f"{_endpoint(where)} does not know what is asked of it ({action}: {said or code}). slimvit needs "
            "conditional writes (`If-None-Match`, `If-Match`), multipart uploads and SHA-256 checksums"
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    if str(status).startswith("5") or code in ("SlowDown", "Throttling", "RequestTimeout"):
        tries = 1 + int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0))
        return (
            f"{_endpoint(where)} failed {counted(tries, 'time')} in a row ({code}: {said}). Running the "
            "same command again goes on from what is committed"
        )
    return f"{code}: {said} (in {action})"


_PERMISSIONS = {
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "DeleteObjects": "DeleteObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListMultipartUploads": "ListBucketMultipartUploads",
}
"""Which permission an action asks for, where they are not called the same."""


def _region(error: ClientError) -> str | None:
    details = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = details.get("Region") or headers.get("x-amz-bucket-region")
    return None if found is None else str(found)


def _endpoint(where: Address) -> str:
    return f"`{where.endpoint}`" if where.endpoint else "the endpoint (AWS_ENDPOINT_URL, or Amazon's)"
