"""How AWS and botocore say no: the kinds of refusals that services share, S3 and EC2 alike."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.exceptions import ClientError

NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
SIGNED_OUT = (boto.SSOTokenLoadError, boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError)
BAD_SETTINGS = (boto.ProfileNotFound, boto.ConfigParseError, boto.InvalidConfigError)
NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError)
"""Refused, reset, timed out, or no such host."""

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
UNKNOWN_KEY = frozenset(
    {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure", "InvalidToken"}
    | {"InvalidSecurity"}
)
BAD_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException"})
DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden", "AllAccessDisabled"}
    | {"AccountProblem"}
)


def code_of(error: ClientError) -> str:
    """The service's own word for an error, or the number of the answer where it has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))
