"""How a job ends: one exit code per cause, and the text of /opt/ml/output/failure."""

import re
import signal
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagemaker_entry.contract import SECRET_NAME

FINISHED = 0
TRAINING_FAILED = 1
BAD_INPUT = 2
HOSTS_MISSING = 10
RAY_STOPPED = 11
HOST_LOST = 12
HEAD_LOST = 13
DRIVER_KILLED = 14
RESULTS_NOT_WRITTEN = 15
ENTRY_FAILED = 16
PACKAGES_MISSING = 17
STOPPED = 143

# How much of the failure file SageMaker shows as the job's failure reason.
FAILURE_CHARACTERS = 1024
# In a URL: user:password@host, or a token in place of the user, as private package indexes have it.
_URL_PASSWORD = re.compile(r"(://)(?:([^\s/:@]*:)[^\s/@]+|[^\s/:@]{16,})@")
_MIN_SECRET_CHARACTERS = 6
HIDDEN = "******"


@dataclass(frozen=True)
class Verdict:
    """How the job ended, the same on every host: the exit code, and the reason unless the code is 0."""

    code: int
    reason: str = ""


class JobError(Exception):
    """Ends the job with a verdict."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.verdict = Verdict(code, reason)


class Redactor:
    """Replaces secrets in everything that is printed or written.

    Secrets are the values of environment variables with such names, and passwords and tokens in URLs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._secrets: set[str] = set()
        for name, value in environment.items():
            if SECRET_NAME.search(name):
                # By line, because output is redacted line by line.
                for line in value.splitlines():
                    self.add(line)

    def add(self, secret: str) -> None:
        """Also redact this text, unless it is so short that it would match ordinary words."""
        if len(secret) >= _MIN_SECRET_CHARACTERS:
            # As it is, and as in a URL.
            self._secrets |= {secret, urllib.parse.quote(secret, safe="")}

    def __call__(self, text: str) -> str:
        # The longest first: another one may be a part of it.
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return _URL_PASSWORD.sub(rf"\1\2{HIDDEN}@", text)


def judge_driver(code: int, lines: Sequence[str], stop_requested: bool) -> Verdict:
    """The verdict for the driver's exit code and its last lines of output."""
    # Ray's own SIGTERM handler exits with 15, the number of the signal (Ray 2.60).
    if stop_requested and code in (STOPPED, -signal.SIGTERM, signal.SIGTERM):
        return Verdict(STOPPED, "stopped by SIGTERM; the job resumes from its newest checkpoint when it runs again")
    if code < 0:
        return Verdict(DRIVER_KILLED, f"{describe_kill('main.py', code)}\n" + "\n".join(lines[-10:]))
    return Verdict(code, first_failure(lines) if code else "")


def describe_kill(program: str, code: int) -> str:
    """Say which signal ended a program, from its negative exit code."""
    memory = " (SIGKILL often means that memory ran out)" if code == -signal.SIGKILL else ""
    return f"{program} was killed by {signal.Signals(-code).name}{memory}"


def first_failure(lines: Sequence[str]) -> str:
    """The cause of a failure, from the driver's output: an exception and where it was raised, or the error line."""
    lines = [line for line in map(_without_prefix, lines) if line.strip()]
    start = next((i for i, line in enumerate(lines) if re.match(r"worker \d+.* failed:$", line)), None)
    if start is None:
        start = next((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), None)
    if start is None:
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else "\n".join(lines[-10:])
    cause = find_exception(lines[start + 1 :]) or lines[-1]
    # The exception first, because SageMaker truncates the reason. A worker prints its own traceback before or after the
    # driver names the cause.
    frames = [line for line in lines if re.match(r'\s*File ".*", line \d+', line)]
    return "\n".join([cause, *dict.fromkeys(frames[::-1])])


def _without_prefix(line: str) -> str:
    """A line without the color codes and the process name that Ray 2.60 adds to the output of workers."""
    return re.sub(r"^\(\w[\w.]* pid=\d+(, ip=[\d.]+)?\) ", "", re.sub(r"\x1b\[[0-9;]*m", "", line))


def find_exception(lines: Sequence[str]) -> str | None:
    """The first line that names an exception, as at the end of a traceback."""
    return next(
        (line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b(:|$)", line)), None
    )


def write_failure(path: Path, verdict: Verdict) -> None:
    """Write the reason for a failure, truncated to the part that SageMaker shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(verdict.reason[:FAILURE_CHARACTERS])
