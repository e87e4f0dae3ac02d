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
    stopped_ray,
)
from sagemaker_entry.container.outcome import HEAD_LOST, HOSTS_MISSING, PACKAGES_MISSING, STOPPED, Verdict
from sagemaker_entry.container.packages import describe_failure, start_pip
from sagemaker_entry.container.processes import Child
from sagemaker_entry.container.verdicts import ask


def follow(entry: Entry, token: str) -> Verdict:
    """Join Ray once the head answers, and return the head's verdict, or one that says that the head is lost."""
    head, me = entry.cluster.head.name, entry.cluster.current.name
    address, own_address = entry.resolve(head), entry.resolve(me)
    pip = start_pip(entry)
    ray: Child | None = None
    failure: Verdict | None = None
    heard_at = 0.0
    while True:
        entry.processes.reap()
        if failure is None and (failure := _find_failure(me, pip, ray)):
            entry.log(failure.reason)
        try:
            verdict = ask(address, token, me, entry.stop_requested, failure)
            heard_at = time.monotonic()
        except OSError as error:
            verdict = _judge_silence(entry, heard_at, failure, error)
        if verdict:
            return verdict
        if ray is None and heard_at and pip.code == 0:
            ray = entry.start_ray(own_address, f"--address={address}:{RAY_PORT}")
        if entry.seconds_since_stop() > STOP_SECONDS + DELIVER_SECONDS:
            return Verdict(STOPPED, f"the head, {head}, gave no verdict after SIGTERM")
        time.sleep(POLL_SECONDS)


def _find_failure(name: str, pip: Child, ray: Child | None) -> Verdict | None:
    """Why this host cannot continue; None if it can."""
    if pip.code:
        return Verdict(PACKAGES_MISSING, describe_failure(pip))
    return stopped_ray(name, ray) if ray and ray.code is not None else None


def _judge_silence(entry: Entry, heard_at: float, failure: Verdict | None, error: OSError) -> Verdict | None:
    """The verdict if the head has not answered for too long, otherwise None."""
    now, head = time.monotonic(), entry.cluster.head.name
    if heard_at:
        if now - heard_at > LOST_SECONDS:
            return Verdict(HEAD_LOST, f"the head, {head}, stopped responding without a verdict ({error})")
        return None
    if failure:
        return failure
    if entry.stop_requested:
        return Verdict(STOPPED, "stopped by SIGTERM before the job started")
    if now > entry.join_deadline:
        return Verdict(HOSTS_MISSING, f"after {JOIN_SECONDS:.0f} s, the head, {head}, does not answer ({error})")
    return None
