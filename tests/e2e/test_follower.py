"""A job is followed while calls to AWS fail; half an hour passes in seconds."""

import io
import json
import random
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagemaker_entry.client.errors import WaitError
from sagemaker_entry.jobs import follow
from sagemaker_entry.jobs.connection import Connection
from support.fake_sagemaker import (
    DROPPED,
    LOG_GROUP,
    LOST,
    REGION,
    JobState,
    Rejection,
    Service,
    read_body,
    service,
)
from support.s3_server import client

pytestmark = pytest.mark.e2e
NAME = "job-7"
THROTTLED = ("ThrottlingException", "Rate exceeded")
EXPIRED = ("ExpiredTokenException", "The security token included in the request is expired")
TOKEN_EXPIRED = ("InvalidParameterException", "The specified nextToken is invalid.")
READS = ("DescribeTrainingJob", "DescribeLogStreams", "GetLogEvents")
END_SECONDS = 30 * 60
CUT = range(300, 480)
# From when to when the credentials are invalid.
EXPIRIES = {600: 650, 1200: 1250}
# When each log stream begins and ends. The job is restarted after 15 minutes.
STREAMS = {
    "algo-1-100": range(0, 900),
    "algo-2-100": range(90, 900),
    "algo-1-200": range(960, END_SECONDS),
    "algo-2-200": range(1000, END_SECONDS),
}


class Weather:
    """Time that passes only while the follower sleeps, what hosts print in it, and what goes wrong."""

    def __init__(self, sagemaker: Service, credentials: Path, seed: int) -> None:
        self.now = 0.0
        self.printed: dict[str, list[str]] = {}
        self.faults: dict[str, int] = {}
        self._random = random.Random(seed)
        self._sagemaker = sagemaker
        self._credentials = credentials
        self._key = "key0"
        self._is_over = False
        self._start = int(time.time() * 1000)
        self._logs = client(sagemaker.endpoint, "logs", REGION)
        self._logs.create_log_group(logGroupName=LOG_GROUP)
        self.renew("key0")

    def renew(self, key: str) -> None:
        """Write the user's credentials."""
        self._credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        for start, end in EXPIRIES.items():
            if before < start <= self.now:
                self._key = f"key{start}"
            if before < end <= self.now:
                self.renew(f"key{start}")
        if self._is_over and seconds == follow.LATE_LINES_SECONDS:
            # The last line reaches CloudWatch after the job has ended.
            self._print("algo-1-200", 1)
        for stream, lifetime in STREAMS.items():
            if int(self.now) in lifetime:
                self._print(stream, self._random.randint(0, 1 + int(seconds)))

    def _print(self, stream: str, count: int) -> None:
        """Print lines, most of them within the same millisecond."""
        place = {"logGroupName": LOG_GROUP, "logStreamName": f"{NAME}/{stream}"}
        if stream not in self.printed:
            self.printed[stream] = []
            self._logs.create_log_stream(**place)
        earlier = self.printed[stream]
        lines = [f"{stream} {len(earlier) + number}" for number in range(count)]
        if lines:
            moment = self._start + int(self.now)
            self._logs.put_log_events(**place, logEvents=[{"timestamp": moment, "message": line} for line in lines])
        earlier += lines

    def choose(self, call: str, environment: dict[str, Any]) -> Rejection | None:
        """What happens to a call."""
        if call not in READS:
            return None
        rejection = self._choose(call, environment)
        if rejection:
            self.faults[rejection[1]] = self.faults.get(rejection[1], 0) + 1
        return rejection

    def _choose(self, call: str, environment: dict[str, Any]) -> Rejection | None:
        if int(self.now) in CUT:
            return DROPPED
        if f"Credential={self._key}/" not in environment["HTTP_AUTHORIZATION"]:
            return EXPIRED
        if self._random.random() < 0.2:
            return self._random.choice([THROTTLED, DROPPED, LOST])
        if call == "GetLogEvents":
            body = read_body(environment)
            if "nextToken" in body and self._random.random() < 0.05:
                return TOKEN_EXPIRED
            # Pages of a few lines.
            content = json.dumps(body | {"limit": 7}).encode()
            environment.update({"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(len(content))})
        if call == "DescribeTrainingJob":
            self._is_over = self.now >= END_SECONDS
            status = ("Completed", "Completed") if self._is_over else ("InProgress", "Training")
            self._sagemaker.states = [JobState(*status)]
        return None


@pytest.fixture
def sagemaker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    """A service with one job, for followers in this process that read credentials from a file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with service({}) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        # moto keeps its accounts as long as this process runs.
        urllib.request.urlopen(f"{running.endpoint}/moto-api/reset", data=b"").close()
        running.create_job(NAME)
        yield running


def test_every_line_is_printed_once_although_half_an_hour_of_calls_fail_at_random(
    sagemaker: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 10.0)
    random.seed(1)
    weather = Weather(sagemaker, tmp_path / "credentials", seed=1)
    sagemaker.choose = weather.choose
    follow.wait_for_job(Connection(REGION, weather.clock, weather.sleep), NAME)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for stream, expected in weather.printed.items():
        assert [line for line in lines if line.startswith(stream)] == expected, stream
    assert len(weather.printed) == 4 and all(len(expected) > 100 for expected in weather.printed.values())
    assert {reason for _, reason in (THROTTLED, DROPPED, LOST, EXPIRED, TOKEN_EXPIRED)} == set(weather.faults)
    assert weather.now > END_SECONDS
    notes = [re.sub(r" \(.*\)|\d+ s$", "", line) for line in printed.err.splitlines()]
    waiting = "NOTE: waiting for {} for up to 30 minutes; the job continues"
    ends = "NOTE: AWS answers again, after "
    assert set(notes) == {waiting.format("AWS"), waiting.format("new credentials"), ends}
    assert notes.count(waiting.format("new credentials")) == len(EXPIRIES)
    assert notes[-1] == ends and 3 <= notes.count(ends) <= len(notes) / 2


def test_lost_network_is_given_up_after_half_an_hour_with_the_command_to_follow_again(
    sagemaker: Service, tmp_path: Path
) -> None:
    weather = Weather(sagemaker, tmp_path / "credentials", seed=2)
    sagemaker.rejections["DescribeTrainingJob"] = DROPPED
    with pytest.raises(WaitError) as failure:
        follow.wait_for_job(Connection(REGION, weather.clock, weather.sleep), NAME)
    assert "cannot follow job-7, which may still be running: Connection was closed" in str(failure.value)
    command = f"python sagemaker_entry/submit.py --attach {NAME} --region {REGION}"
    assert str(failure.value).endswith(f". To follow it again: {command}")
    assert END_SECONDS <= weather.now < END_SECONDS + 60


def test_expired_credentials_in_variables_are_not_waited_out(
    sagemaker: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    weather = Weather(sagemaker, tmp_path / "credentials", seed=3)
    sagemaker.rejections["DescribeTrainingJob"] = EXPIRED
    with pytest.raises(WaitError, match=r"security token .* is expired. To follow it again: python"):
        follow.wait_for_job(Connection(REGION, weather.clock, weather.sleep), NAME)
    assert weather.now == 0
