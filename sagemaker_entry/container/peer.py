"""What every host except the head does: join Ray, and wait for the head's verdict."""

import time

from sagemaker_entry.container.entry import (
    DELIVER_SECONDS,
    JOIN_SECONDS,
    LOST_SECONDS,
    POLL_SECONDS,
    RAY_PORT,
    STOP_SECONDS,
    Entry,
    describe_stopped_ray,
)
from sagemaker_entry.container.outcome import HEAD_LOST, HOSTS_MISSING, STOPPED, Verdict
from sagemaker_entry.container.processes import Child
from sagemaker_entry.container.verdicts import ask


def follow(entry: Entry, token: str) -> Verdict:
    """Join Ray once the head answers, and return the head's verdict, or one that says that the head is lost."""
    head, me = entry.cluster.head.name, entry.cluster.current.name
    address, own_address = entry.resolve(head), entry.resolve(me)
    ray: Child | None = None
    failure, heard_at = "", 0.0
    while True:
        entry.processes.reap()
        try:
            verdict = ask(address, token, me, entry.stop_requested, failure)
            heard_at = time.monotonic()
        except OSError as error:
            verdict = _judge_silence(entry, heard_at, error)
        if verdict:
            return verdict
        if ray is None and heard_at:
            ray = entry.start_ray(own_address, f"--address={address}:{RAY_PORT}")
        if ray and ray.code is not None and not failure:
            failure = describe_stopped_ray(me, ray)
            entry.log(failure)
        if entry.seconds_since_stop() > STOP_SECONDS + DELIVER_SECONDS:
            return Verdict(STOPPED, f"the head, {head}, gave no verdict after SIGTERM")
        time.sleep(POLL_SECONDS)


def _judge_silence(entry: Entry, heard_at: float, error: OSError) -> Verdict | None:
    """The verdict if the head has not answered for too long, otherwise None."""
    now, head = time.monotonic(), entry.cluster.head.name
    if heard_at:
        if now - heard_at > LOST_SECONDS:
            return Verdict(HEAD_LOST, f"the head, {head}, stopped responding without a verdict ({error})")
        return None
    if entry.stop_requested:
        return Verdict(STOPPED, "stopped by SIGTERM before the job started")
    if now > entry.join_deadline:
        return Verdict(HOSTS_MISSING, f"after {JOIN_SECONDS:.0f} s, the head, {head}, does not answer ({error})")
    return None
