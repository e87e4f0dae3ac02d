"""The head host's part: Ray's head, the driver, the results, and the verdict for all hosts."""

import json
import signal
import sys
import time
import traceback
from dataclasses import astuple
from pathlib import Path

from entry import DELIVER_SECONDS, LOST_SECONDS, POLL_SECONDS, RAY_PORT, STOP_SECONDS, Entry, describe_stopped_ray
from hosts import LOOPBACK
from job import Job, Paths, read_job
from outcome import (
    ENTRY_FAILED,
    FINISHED,
    HOST_LOST,
    HOSTS_MISSING,
    RAY_STOPPED,
    RESULTS_NOT_WRITTEN,
    STOPPED,
    TRAINING_FAILED,
    JobError,
    Verdict,
    judge_driver,
)
from processes import Child
from verdicts import VerdictServer

HERE = Path(__file__).resolve().parent


def lead(entry: Entry, paths: Paths, token: str) -> Verdict:
    """Run the job; its verdict reaches the other hosts even if it is about bad input."""
    others = {host.name for host in entry.cluster.others}
    own_address = entry.resolve(entry.cluster.head.name) if others else LOOPBACK
    server = VerdictServer(own_address, token) if others else None
    try:
        job = read_job(paths, entry.job_name, len(entry.cluster.hosts))
        addresses = {name: entry.resolve(name) for name in others} | {entry.cluster.head.name: own_address}
        verdict = _train(entry, job, addresses, server)
    except JobError as error:
        verdict = error.verdict
    except Exception:
        # The other hosts have to hear of this, too.
        verdict = Verdict(ENTRY_FAILED, traceback.format_exc(limit=-3))
    if server:
        # Before Ray ends: its end alone would not tell the others why. Hosts that did not show up in time are not
        # waited for again.
        expected = others if time.monotonic() < entry.join_deadline else others & set(server.seen)
        expected -= set(server.silent(LOST_SECONDS))
        unaware = server.publish(verdict, expected, DELIVER_SECONDS)
        if unaware:
            entry.log(f"{', '.join(sorted(unaware))} did not ask for the verdict")
        server.close()
    return verdict


def _train(entry: Entry, job: Job, addresses: dict[str, str], server: VerdictServer | None) -> Verdict:
    """Start Ray and the driver, wait for the driver's end and copy the results."""
    head = entry.cluster.head
    address = addresses[head.name]
    ray = entry.start_ray(address, "--head", f"--port={RAY_PORT}", f"--dashboard-host={LOOPBACK}")
    settings = {
        "address": f"{address}:{RAY_PORT}",
        "join_seconds": round(entry.join_deadline - time.monotonic()),
        "hosts": [[astuple(host), addresses[host.name]] for host in entry.cluster.hosts],
        "head": astuple(head),
    }
    command = [sys.executable, str(HERE / "driver.py"), json.dumps(settings), *job.command_line()]
    driver = entry.processes.start(command, entry.environment)
    code = _attend(entry, driver, ray, server)
    verdict = judge_driver(code, driver.last_lines(), entry.stop_requested)
    if server and verdict.code == TRAINING_FAILED:
        hear_from_all(entry, server)
    return verdict if verdict.code == HOSTS_MISSING else _collect(entry, job, verdict)


def _attend(entry: Entry, driver: Child, ray: Child, server: VerdictServer | None) -> int:
    """Wait for the driver while minding everything else; its exit code.

    Raises:
        JobError: if Ray or another host is gone, or the driver does not stop.
    """
    told_to_stop = False
    while driver.code is None:
        time.sleep(POLL_SECONDS / 2)
        entry.processes.reap()
        if server:
            _check_others(entry, server)
        if entry.stop_requested and not told_to_stop:
            told_to_stop = True
            entry.log("told to stop: saving a checkpoint")
            driver.send_signal(signal.SIGTERM)
        if entry.seconds_since_stop() > STOP_SECONDS:
            raise JobError(STOPPED, f"main.py did not stop within {STOP_SECONDS:.0f} s of SIGTERM")
        if ray.code is not None and driver.code is None:
            raise JobError(RAY_STOPPED, describe_stopped_ray(entry.cluster.head.name, ray))
    return driver.code


def _check_others(entry: Entry, server: VerdictServer) -> None:
    """React to what the other hosts say, and to their silence.

    Raises:
        JobError: if one of them cannot go on, or is gone.
    """
    for sighting in list(server.seen.values()):
        if sighting.stopping:
            entry.request_stop()
        if sighting.failure:
            raise JobError(RAY_STOPPED, sighting.failure)
    for name, seconds in server.silent(LOST_SECONDS).items():
        raise JobError(HOST_LOST, f"{name} fell silent: nothing heard of it for {seconds:.0f} s")


def hear_from_all(entry: Entry, server: VerdictServer) -> None:
    """Wait for a sign of each of the other hosts: training that failed since one of them is gone shall not be blamed.

    Raises:
        JobError: if one of them cannot go on, or is gone.
    """
    failed_at = time.monotonic()
    heard = False
    while not heard:
        time.sleep(POLL_SECONDS / 5)
        entry.processes.reap()
        heard = all(sighting.at >= failed_at for sighting in list(server.seen.values()))
        _check_others(entry, server)


def _collect(entry: Entry, job: Job, verdict: Verdict) -> Verdict:
    """Copy the results to where SageMaker collects them; also what a failed run left, as far as it goes."""
    finished = ["finished"] if verdict.code == FINISHED else []
    command = [sys.executable, str(HERE / "outputs.py"), job.storage_path, job.run_name, *finished]
    outputs = entry.processes.start(command, entry.environment)
    while outputs.code is None and entry.seconds_since_stop() < STOP_SECONDS:
        time.sleep(POLL_SECONDS / 5)
        entry.processes.reap()
    if verdict.code == FINISHED and outputs.code != 0:
        return Verdict(RESULTS_NOT_WRITTEN, "\n".join(outputs.last_lines()[-10:]))
    return verdict
