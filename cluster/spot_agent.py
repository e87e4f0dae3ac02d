"""Drain this Ray node when EC2 announces a spot interruption, and shut the machine down when the head is lost.

aws.yaml starts it on each spot worker. Ray itself does not query the instance metadata service. Once the node drains,
Ray Train notifies the workers, which save a checkpoint, and the autoscaler starts a replacement. Without a head,
nothing else would terminate the machine. Uses only the standard library and the ray command.
"""

import argparse
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

IMDS = "http://169.254.169.254"
TOKEN_SECONDS = 6 * 3600
REQUEST_SECONDS = 2.0
# EC2 gives two minutes' notice and recommends polling every five seconds.
POLL_SECONDS = 5.0
POLL_HELP = "seconds between two polls (default: %(default)s)"
# Ray's deadline is this much earlier than EC2's: the ray command takes seconds to deliver it, and Ray has to stop the
# workers before the instance is gone. Otherwise, the run counts a failure instead of a preemption.
RESERVE_SECONDS = 15
COMMAND_LIMIT_SECONDS = 60.0
# A head that restarts, or that `ray up` replaces, is back within a few minutes.
LOST_MINUTES = 10.0
LOST_HELP = "minutes without a head after which to shut down (default: %(default)s)"
# The launch template makes EC2 terminate an instance that shuts down.
SHUT_DOWN = ("sudo", "shutdown", "-h", "now")
CANCEL_SHUTDOWN = ("sudo", "shutdown", "-c")

logger = logging.getLogger("spot_agent")
# Never use a proxy for instance metadata, whatever the environment says.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Metadata:
    """The instance metadata service, version 2: every request carries a token, renewed when rejected.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None

    def interruption(self) -> tuple[str, datetime] | None:
        """The announced action (terminate, stop, or hibernate) and its time; None if nothing is announced.

        Raises:
            OSError, http.client.HTTPException: if the request fails.
            ValueError, KeyError: if the response is not in the documented format.
        """
        self._token = self._token or self._new_token()
        try:
            notice = self._get("/latest/meta-data/spot/instance-action", self._token)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                return None
            if error.code == http.HTTPStatus.UNAUTHORIZED:
                self._token = None
            raise
        values = json.loads(notice)
        return str(values["action"]), datetime.fromisoformat(values["time"])

    def _get(self, path: str, token: str) -> str:
        return self._send(urllib.request.Request(self._endpoint + path, headers={"X-aws-ec2-metadata-token": token}))

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        return self._send(urllib.request.Request(self._endpoint + "/latest/api/token", method="PUT", headers=headers))

    @staticmethod
    def _send(request: urllib.request.Request) -> str:
        with _opener.open(request, timeout=REQUEST_SECONDS) as response:
            return str(response.read().decode())


def call(*command: str) -> bool:
    """Run a command; return whether it succeeded, and log what it prints if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("%s: %s", " ".join(command), error)
        return False
    if result.returncode:
        logger.warning("%s: %s", " ".join(command), (result.stdout + result.stderr).strip()[-1000:])
    return result.returncode == 0


def drain(action: str, at: datetime) -> bool:
    """Ask Ray to drain this node by a deadline; return whether Ray accepted."""
    seconds_left = max(1, int((at - datetime.now(UTC)).total_seconds()) - RESERVE_SECONDS)
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", f"EC2 will {action} this spot instance at {at.isoformat()}"]
    command += ["--deadline-remaining-seconds", str(seconds_left)]
    if not call(*command):
        return False
    logger.info("draining: EC2 will %s this instance in %d s", action, seconds_left)
    return True


class Head:
    """The head node of the cluster, observed by connecting to Ray's port there."""

    def __init__(self, address: str, lost_seconds: float) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._lost_seconds = lost_seconds
        self._seen = time.monotonic()

    def is_lost(self) -> bool:
        """Whether the head has not accepted a connection for `lost_seconds`."""
        try:
            socket.create_connection((self._host, int(self._port)), timeout=REQUEST_SECONDS).close()
        except OSError:
            return time.monotonic() - self._seen > self._lost_seconds
        self._seen = time.monotonic()
        return False


def watch(metadata: Metadata, head: Head, poll_seconds: float) -> None:
    """Poll until an interruption is announced and Ray accepts the drain; log errors and continue."""
    last_problem = ""
    while True:
        if head.is_lost():
            logger.warning("the head is lost: shutting down")
            call(*SHUT_DOWN)
        problem = ""
        try:
            announced = metadata.interruption()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            announced, problem = None, f"{type(error).__name__}: {error}"
        if problem != last_problem:
            # Log changes only, not every poll.
            logger.warning("instance metadata: %s", problem or "responding again")
            last_problem = problem
        if announced and drain(*announced):
            return
        time.sleep(poll_seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS
    parser.add_argument("--imds", default=endpoint, help="instance metadata service (default: %(default)s)")
    parser.add_argument("--head", required=True, help="address and port of the head node's Ray, such as 10.0.0.5:6379")
    parser.add_argument("--lost-minutes", type=float, default=LOST_MINUTES, help=LOST_HELP)
    parser.add_argument("--poll-seconds", type=float, default=POLL_SECONDS, help=POLL_HELP)
    options = parser.parse_args()
    if not options.poll_seconds > 0:
        parser.error(f"--poll-seconds {options.poll_seconds}: expected a positive number of seconds.")
    if not re.fullmatch(r".+:\d+", options.head):
        parser.error(f"--head {options.head}: expected ADDRESS:PORT.")
    if not options.lost_minutes > 0:
        parser.error(f"--lost-minutes {options.lost_minutes}: expected a positive number of minutes.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    # This agent replaces the shutdown that aws.yaml schedules in case the setup of the node does not end.
    call(*CANCEL_SHUTDOWN)
    watch(Metadata(options.imds), Head(options.head, options.lost_minutes * 60), options.poll_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
