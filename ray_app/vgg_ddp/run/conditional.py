"""Replace an object on S3 only if nobody else has: conditional writes, which pyarrow does not have.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from pyarrow import fs

from vgg_ddp.compat.pyarrow_s3 import s3_options

# In seconds. The object is tiny, so a slow answer is a lost one.
CONNECT_TIMEOUT, READ_TIMEOUT = 3, 4
# With exponential backoff, these take a few seconds.
ATTEMPTS = 4
CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404", "409", "412"}
# How storage answers that does not know conditions.
NOT_IMPLEMENTED = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "405"}
# The ETag of no object.
NO_OBJECT = f'"{"0" * 32}"'


class ConflictError(Exception):
    """The object is not the one that was to be replaced."""


class UnsupportedError(OSError):
    """Conditional writes are not possible here; the message says why."""


class Stored(Protocol):
    """A file that is replaced only if nobody else has: `ConditionalObject`, or `VersionedFile` in `versions.py`."""

    @property
    def path(self) -> str: ...
    def read(self) -> tuple[bytes, str] | None: ...
    def replace(self, content: bytes, etag: str | None) -> str: ...
    def require_conditions(self) -> None: ...


@dataclass
class ConditionalObject:
    """An object on S3, reached with the options of pyarrow's filesystem. Threads may share it."""

    filesystem: fs.S3FileSystem
    path: str
    _client: Any = field(default=None, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConditionalObject, (self.filesystem, self.path)

    def read(self) -> tuple[bytes, str] | None:
        """Content and ETag; None if the object does not exist.

        Raises:
            OSError: if it cannot be read.
            UnsupportedError: if boto3 is missing or too old.
        """
        try:
            answer = self._call("get_object")
            return answer["Body"], answer["ETag"]
        except ConflictError:
            return None

    def replace(self, content: bytes, etag: str | None) -> str:
        """Replace the object that has this ETag, or create it (None); return the new ETag.

        Raises:
            ConflictError: if there is another object, or none that could be replaced. A request that was answered too
                late may have caused it.
            OSError: if it cannot be written.
            UnsupportedError: if the storage has no conditional writes, or boto3 is missing or too old.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        answer: str = self._call("put_object", Body=content, **condition)["ETag"]
        return answer

    def require_conditions(self) -> None:
        """Check that the storage obeys conditions, for an object that exists: some ignore them.

        Raises:
            UnsupportedError: if it does not.
            OSError: if it cannot be written.
        """
        for etag in (None, NO_OBJECT):
            try:
                self.replace(b"{}", etag)
            except ConflictError:
                continue
            raise UnsupportedError("this storage ignores the conditions If-None-Match and If-Match")

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        if self._client is None:
            self._client = _client(self.filesystem)
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        bucket, _, key = self.path.partition("/")
        try:
            answer: dict[str, Any] = getattr(self._client, method)(Bucket=bucket, Key=key, **arguments)
            if "Body" in answer:
                answer["Body"] = answer["Body"].read()
        except ParamValidationError as error:
            raise UnsupportedError("boto3 is older than 1.36") from error
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in CONFLICTS:
                raise ConflictError(code) from error
            if code in NOT_IMPLEMENTED:
                raise UnsupportedError("this storage has no conditional writes") from error
            raise OSError(str(error)) from error
        except NoCredentialsError as error:
            raise UnsupportedError("boto3 finds no credentials") from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
        return answer


def _client(filesystem: fs.S3FileSystem) -> Any:
    """A client of botocore, boto3's core, that reaches S3 as pyarrow's filesystem does.

    Raises:
        UnsupportedError: if there is none.
    """
    try:
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session
    except ImportError as error:
        raise UnsupportedError("boto3 is not installed") from error
    options = s3_options(filesystem)
    if options is None:
        raise UnsupportedError("this version of pyarrow does not show its options")
    endpoint = options["endpoint_override"] or None
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    proxy = options["proxy_options"]
    proxy_url = f"{proxy['scheme']}://{proxy['host']}:{proxy['port']}"
    style = "path" if endpoint and not options["force_virtual_addressing"] else "auto"
    more = {"signature_version": UNSIGNED} if options["anonymous"] else {}
    try:
        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # Not those of the environment, which pyarrow ignores.
            proxies=dict.fromkeys(("http", "https"), proxy_url) if proxy["host"] else {},
            s3={"addressing_style": style},
            # Other storage than AWS's may not know the checksums that boto3 adds.
            request_checksum_calculation="when_required",
            **more,
        )
    except TypeError as error:
        raise UnsupportedError("boto3 is older than 1.36") from error
    try:
        session = get_session()
        return session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=options["region"] or session.get_config_variable("region") or "us-east-1",
            verify=options["tls_ca_file_path"] or None,
            config=config,
            aws_access_key_id=options["access_key"] or None,
            aws_secret_access_key=options["secret_key"] or None,
            aws_session_token=options["session_token"] or None,
        )
    except (BotoCoreError, ValueError) as error:
        # For example, AWS_PROFILE names a profile that does not exist; pyarrow may have keys from the environment.
        raise UnsupportedError(f"boto3 cannot be used ({error})") from error
