"""Drain this Ray node when EC2 announces that it takes the spot instance back; started by aws.yaml on each spot worker.

Ray itself does not ask the instance metadata service. Once the node drains, Ray Train tells the workers, who save a
checkpoint, and the autoscaler starts a replacement. Standard library and the ray command only.
"""

import argparse
import http.client
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

IMDS = "http://169.254.169.254"
TOKEN_SECONDS = 6 * 3600
REQUEST_SECONDS = 2.0
# EC2 gives notice two minutes ahead and recommends to ask every five seconds.
POLL_SECONDS = 5.0
# Between reading the clock and Ray's noting the deadline, the ray command has to start.
COMMAND_SECONDS = 5
COMMAND_LIMIT_SECONDS = 60.0

logger = logging.getLogger("spot_agent")
# Instance metadata is never behind a proxy, whatever the environment says.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Metadata:
    """The instance metadata service, version 2: every request carries a token, renewed when it is refused.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None

    def interruption(self) -> tuple[str, datetime] | None:
        """What EC2 will do to this instance (terminate, stop or hibernate) and when; None if nothing is announced.

        Raises:
            OSError, http.client.HTTPException: if the service does not answer as it should.
            ValueError, KeyError: if its answer is not what AWS documents.
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
        return self._ask(urllib.request.Request(self._endpoint + path, headers={"X-aws-ec2-metadata-token": token}))

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        return self._ask(urllib.request.Request(self._endpoint + "/latest/api/token", method="PUT", headers=headers))

    @staticmethod
    def _ask(request: urllib.request.Request) -> str:
        with _opener.open(request, timeout=REQUEST_SECONDS) as response:
            return str(response.read().decode())


def drain(action: str, at: datetime) -> bool:
    """Tell Ray that this node goes at a time; whether Ray took note."""
    seconds_left = max(1, int((at - datetime.now(UTC)).total_seconds()) - COMMAND_SECONDS)
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", f"EC2 will {action} this spot instance at {at.isoformat()}"]
    command += ["--deadline-remaining-seconds", str(seconds_left)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("could not drain: %s", error)
        return False
    if result.returncode:
        logger.warning("could not drain: %s", (result.stdout + result.stderr).strip()[-1000:])
        return False
    logger.info("draining: EC2 will %s this instance in %d s", action, seconds_left)
    return True


def watch(metadata: Metadata, poll_seconds: float) -> None:
    """Ask for an announcement until there is one and Ray took note of it; errors are logged and outlived."""
    last_problem = ""
    while True:
        problem = ""
        try:
            announced = metadata.interruption()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            announced, problem = None, f"{type(error).__name__}: {error}"
        if problem != last_problem:
            # Once, not at every poll.
            logger.warning("instance metadata: %s", problem or "answering again")
            last_problem = problem
        if announced and drain(*announced):
            return
        time.sleep(poll_seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS
    parser.add_argument("--imds", default=endpoint, help="instance metadata service (default: %(default)s)")
    parser.add_argument("--poll-seconds", type=float, default=POLL_SECONDS, help="default: %(default)s")
    options = parser.parse_args()
    if not options.poll_seconds > 0:
        parser.error(f"--poll-seconds {options.poll_seconds}: expected a positive number of seconds.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    watch(Metadata(options.imds), options.poll_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
