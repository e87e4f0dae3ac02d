"""The part of every host but the head: join Ray, and wait for the head's verdict."""

import time

from entry import (
    DELIVER_SECONDS,
    JOIN_SECONDS,
    LOST_SECONDS,
    POLL_SECONDS,
    RAY_PORT,
    STOP_SECONDS,
    Entry,
    describe_stopped_ray,
)
from outcome import HEAD_LOST, HOSTS_MISSING, STOPPED, Verdict
from processes import Child
from verdicts import ask


def follow(entry: Entry, token: str) -> Verdict:
    """Join Ray once the head answers; the verdict that it gives, or one on its silence."""
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
            return Verdict(STOPPED, f"{head}, the head, gave no verdict after SIGTERM")
        time.sleep(POLL_SECONDS)


def _judge_silence(entry: Entry, heard_at: float, error: OSError) -> Verdict | None:
    """The verdict on a head that does not answer, once it has had enough time."""
    now, head = time.monotonic(), entry.cluster.head.name
    if heard_at:
        if now - heard_at > LOST_SECONDS:
            return Verdict(HEAD_LOST, f"{head}, the head, fell silent without a verdict ({error})")
        return None
    if entry.stop_requested:
        return Verdict(STOPPED, "stopped by SIGTERM before the job began")
    if now > entry.join_deadline:
        return Verdict(HOSTS_MISSING, f"after {JOIN_SECONDS:.0f} s, {head}, the head, does not answer ({error})")
    return None
