"""How a job ends: one exit code per cause, and the text of /opt/ml/output/failure."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
STOPPED = 143

# How much of the failure file SageMaker shows as the job's failure reason.
FAILURE_CHARACTERS = 1024
_SECRET_NAME = re.compile(r"SECRET|PASSW|PASSPHRASE|_PWD|TOKEN|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
_MIN_SECRET_CHARACTERS = 6


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
    """Replaces the values of secret environment variables in everything that is printed or written."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._secrets: set[str] = set()
        for name, value in environment.items():
            if _SECRET_NAME.search(name):
                # By line, because output is redacted line by line.
                for line in value.splitlines():
                    self.add(line)

    def add(self, secret: str) -> None:
        """Also redact this text, unless it is so short that it would match ordinary words."""
        if len(secret) >= _MIN_SECRET_CHARACTERS:
            self._secrets.add(secret)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "******")
        return text


def judge_driver(code: int, lines: Sequence[str], stop_requested: bool) -> Verdict:
    """The verdict for the driver's exit code and its last lines of output."""
    # Ray's own SIGTERM handler exits with 15, the number of the signal (Ray 2.60).
    if stop_requested and code in (STOPPED, -signal.SIGTERM, signal.SIGTERM):
        return Verdict(STOPPED, "stopped by SIGTERM; the job resumes from its newest checkpoint when it runs again")
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (SIGKILL often means that memory ran out)" if code == -signal.SIGKILL else ""
        return Verdict(DRIVER_KILLED, f"main.py was killed by {name}{memory}\n" + "\n".join(lines[-10:]))
    return Verdict(code, first_failure(lines) if code else "")


def first_failure(lines: Sequence[str]) -> str:
    """The cause of a failure, from the driver's output: an exception and where it was raised, or the error line."""
    lines = [line for line in map(_without_prefix, lines) if line.strip()]
    start = next((i for i, line in enumerate(lines) if re.match(r"worker \d+.* failed:$", line)), None)
    if start is None:
        start = next((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), None)
    if start is None:
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else "\n".join(lines[-10:])
    cause = next((line for line in lines[start + 1 :] if _is_exception(line)), lines[-1])
    # The exception first, because SageMaker truncates the reason. A worker prints its own traceback before or after the
    # driver names the cause.
    frames = [line for line in lines if re.match(r'\s*File ".*", line \d+', line)]
    return "\n".join([cause, *dict.fromkeys(frames[::-1])])


def _without_prefix(line: str) -> str:
    """A line without the color codes and the process name that Ray 2.60 adds to the output of workers."""
    return re.sub(r"^\(\w[\w.]* pid=\d+(, ip=[\d.]+)?\) ", "", re.sub(r"\x1b\[[0-9;]*m", "", line))


def _is_exception(line: str) -> bool:
    return bool(re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b(:|$)", line))


def write_failure(path: Path, verdict: Verdict) -> None:
    """Write the reason for a failure, truncated to the part that SageMaker shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(verdict.reason[:FAILURE_CHARACTERS])
