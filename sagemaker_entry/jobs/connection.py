"""Calls to AWS that outlast throttling, a lost network, and expired credentials."""

import random
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from sagemaker_entry.client.errors import AWS_ERRORS
from vgg_ddp.run.notes import print_note, reason

GIVE_UP_SECONDS = 30 * 60.0
# Shorter failures are not worth a line.
NOTE_SECONDS = 10.0
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 1.0, 30.0
# boto3's own attempts would wait in addition, and without a word.
CONFIG = Config(connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 1})
# ResponseParserError: the answer is not that of AWS, but that of a proxy, or of a hotel's login page.
NETWORK_ERRORS = (NoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError)
CREDENTIAL_ERRORS = (
    *(NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
    *(LoginError, SSOError, TokenRetrievalError),
)
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
CREDENTIAL_CODES = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"),
    # The clock of a laptop that has just woken up.
    *("InvalidSignatureException", "RequestExpired", "SignatureDoesNotMatch"),
}
THROTTLING_CODES = {"RequestLimitExceeded", "TooManyRequestsException", "BandwidthLimitExceeded", "SlowDown"}


class Connection:
    """The services of a region, called one after the other.

    A call that fails for a reason that passes is repeated, for half an hour at most. Clients of expired credentials
    are replaced, so that credentials that the user renews in the meantime (`aws sso login`, ~/.aws) are found.

    Args:
        region: AWS region.
        clock: seconds since some time.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        region: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.region = region
        self.sleep = sleep
        self._clock = clock
        self._session = boto3.Session(region_name=region)
        self._clients: dict[str, Any] = {}
        self._failing_since: float | None = None
        # What the user was told that this waits for.
        self._noted: list[str] = []
        self._delay = FIRST_DELAY_SECONDS

    def call(self, service: str, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a call.

        Raises:
            ClientError, BotoCoreError: if AWS rejected the call, or did not answer for half an hour.
        """
        while True:
            try:
                answer: dict[str, Any] = getattr(self._client(service), method)(**parameters)
            except (*AWS_ERRORS, ResponseParserError) as error:
                if not (passes(error) or about_credentials(error)):
                    self._end_failure()
                    raise
                self._wait_out(error)
            else:
                self._end_failure()
                return answer

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._session.client(service, config=CONFIG)
        return self._clients[service]

    def _wait_out(self, error: Exception) -> None:
        """Wait until it is time for another attempt.

        Raises:
            Exception: the given one, if no attempt would help.
        """
        is_expired = about_credentials(error)
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        lasted = now - self._failing_since
        if lasted >= GIVE_UP_SECONDS or (is_expired and self._are_from_variables()):
            raise error
        wanted = "new credentials" if is_expired else "AWS"
        if lasted >= NOTE_SECONDS and wanted not in self._noted:
            self._noted.append(wanted)
            minutes = GIVE_UP_SECONDS / 60
            print_note(f"waiting for {wanted} for up to {minutes:.0f} minutes ({cause(error)}); the job continues")
        # Random, so that many followers of a throttled account do not return at the same time.
        self.sleep(self._delay * random.uniform(0.5, 1.0))
        self._delay = min(2 * self._delay, MAX_DELAY_SECONDS)
        if is_expired:
            self._session = boto3.Session(region_name=self.region)
            self._clients.clear()

    def _are_from_variables(self) -> bool:
        """Whether the credentials are from environment variables, which nobody can renew while this process runs."""
        credentials = self._session.get_credentials()
        return credentials is not None and credentials.method == "env"

    def _end_failure(self) -> None:
        """Forget earlier failures, since AWS has answered."""
        if self._noted:
            assert self._failing_since is not None
            print_note(f"AWS answers again, after {self._clock() - self._failing_since:.0f} s")
        self._failing_since, self._noted, self._delay = None, [], FIRST_DELAY_SECONDS


def passes(error: Exception) -> bool:
    """Whether an error is one of the network, of a busy service, or of a broken one."""
    if isinstance(error, ClientError):
        code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return "Throttl" in code or code in THROTTLING_CODES or status == 429 or status >= 500
    return isinstance(error, NETWORK_ERRORS)


def about_credentials(error: Exception) -> bool:
    """Whether an error is about credentials that are missing, have expired, or are no longer valid."""
    return isinstance(error, CREDENTIAL_ERRORS) or error_code(error) in CREDENTIAL_CODES


def cause(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, ClientError):
        return f"{error_code(error)}: {error.response['Error'].get('Message', '')}".rstrip(". ")
    return reason(error).rstrip(".")


def error_code(error: Exception) -> str:
    """The code of an answer that rejects a call; empty for other errors."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""
