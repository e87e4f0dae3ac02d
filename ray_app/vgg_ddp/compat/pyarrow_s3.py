"""pyarrow's S3FileSystem with a retry limit that survives pickling. Tested with pyarrow 25.0.1."""

from collections.abc import Callable
from typing import Any

from pyarrow import fs

from vgg_ddp.compat.fallback import log_fallback

# With exponential backoff, these take about 6 s, or 100 s if nothing responds.
S3_ATTEMPTS = 10


def with_patience(filesystem: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same filesystem with `S3_ATTEMPTS`; unchanged if pyarrow no longer exposes its options."""
    options = s3_options(filesystem)
    if options is None:
        return filesystem
    try:
        return PatientS3FileSystem(**options)
    except TypeError:
        _log_few_attempts()
        return filesystem


class PatientS3FileSystem(fs.S3FileSystem):  # type: ignore[misc]
    """An S3FileSystem that keeps its retry limit when pickled; pyarrow's falls back to three attempts.

    No longer needed with https://github.com/apache/arrow/pull/47350.
    """

    def __init__(self, **options: Any) -> None:
        if "allow_delayed_open" in options:
            # A file of up to 5 MB takes one request instead of three, and so appears at once or not at all.
            options["allow_delayed_open"] = True
        options["retry_strategy"] = fs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
        super().__init__(**options)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        options = s3_options(super())
        return super().__reduce__() if options is None else (_rebuild, (options,))


def _rebuild(options: dict[str, Any]) -> PatientS3FileSystem:
    return PatientS3FileSystem(**options)


def s3_options(filesystem: Any) -> dict[str, Any] | None:
    """The arguments to create this filesystem, which pyarrow exposes only to pickle; None if it no longer does."""
    try:
        _, (options,) = filesystem.__reduce__()
        return dict(options)
    except (TypeError, ValueError):
        _log_few_attempts()
        return None


def _log_few_attempts() -> None:
    log_fallback("pyarrow.fs.S3FileSystem.__reduce__", "requests to S3 are tried three times at most")
