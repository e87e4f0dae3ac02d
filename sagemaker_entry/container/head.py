"""The head host's part: Ray's head node, the driver, the results, and the verdict for all hosts."""

import json
import signal
import sys
import time
import traceback
from dataclasses import astuple
from pathlib import Path

from sagemaker_entry.container.entry import (
    DELIVER_SECONDS,
    LOST_SECONDS,
    POLL_SECONDS,
    RAY_PORT,
    STOP_SECONDS,
    Entry,
    stopped_ray,
)
from sagemaker_entry.container.hosts import LOOPBACK
from sagemaker_entry.container.job import Job, Paths, read_job
from sagemaker_entry.container.outcome import (
    ENTRY_FAILED,
    FINISHED,
    HOST_LOST,
    HOSTS_MISSING,
    RESULTS_NOT_WRITTEN,
    STOPPED,
    TRAINING_FAILED,
    JobError,
    Verdict,
    describe_kill,
    first_failure,
    judge_driver,
)
from sagemaker_entry.container.packages import install_packages
from sagemaker_entry.container.processes import Child
from sagemaker_entry.container.verdicts import VerdictServer

ROOT = Path(__file__).resolve().parents[2]


def lead(entry: Entry, paths: Paths, token: str) -> Verdict:
    """Run the job and deliver its verdict to the other hosts, even if the input is invalid."""
    others = {host.name for host in entry.cluster.others}
    own_address = entry.resolve(entry.cluster.head.name) if others else LOOPBACK
    server = VerdictServer(own_address, token) if others else None
    try:
        job = read_job(paths, entry.job_name, len(entry.cluster.hosts))
        install_packages(entry)
        addresses = {name: entry.resolve(name) for name in others} | {entry.cluster.head.name: own_address}
        verdict = _train(entry, job, addresses, server)
    except JobError as error:
        verdict = error.verdict
    except Exception:
        # The other hosts need a verdict in this case, too.
        verdict = Verdict(ENTRY_FAILED, traceback.format_exc(limit=-3))
    if server:
        # Publish before stopping Ray: otherwise the other hosts would see only that Ray stopped, not why. Do not wait
        # again for hosts that missed the join deadline.
        expected = others if time.monotonic() < entry.join_deadline else others & set(server.heartbeats)
        expected -= set(server.silent(LOST_SECONDS))
        unaware = server.publish(verdict, expected, DELIVER_SECONDS)
        if unaware:
            entry.log(f"the verdict did not reach {', '.join(sorted(unaware))}")
        server.close()
    return verdict


def _train(entry: Entry, job: Job, addresses: dict[str, str], server: VerdictServer | None) -> Verdict:
    """Start Ray and the driver, wait for the driver to exit, and copy the results."""
    head = entry.cluster.head
    address = addresses[head.name]
    ray = entry.start_ray(address, "--head", f"--port={RAY_PORT}", f"--dashboard-host={LOOPBACK}")
    settings = {
        "address": f"{address}:{RAY_PORT}",
        "join_seconds": round(entry.join_deadline - time.monotonic()),
        "hosts": [[astuple(host), addresses[host.name]] for host in entry.cluster.hosts],
        "head": astuple(head),
    }
    driver = _start_module(entry, "driver", json.dumps(settings), *job.command_line())
    code = _supervise(entry, driver, ray, server)
    verdict = judge_driver(code, driver.last_lines(), entry.stop_requested)
    if server and verdict.code == TRAINING_FAILED:
        await_heartbeats(entry, server)
    return verdict if verdict.code == HOSTS_MISSING else _collect(entry, job, verdict)


def _start_module(entry: Entry, name: str, *arguments: str) -> Child:
    """Start a module of this package as a process."""
    # `python -m` finds packages in the working directory. PYTHONPATH would also affect main.py and its workers.
    command = [sys.executable, "-m", f"sagemaker_entry.container.{name}", *arguments]
    return entry.processes.start(command, entry.environment, cwd=ROOT)


def _supervise(entry: Entry, driver: Child, ray: Child, server: VerdictServer | None) -> int:
    """Wait for the driver while watching Ray, the other hosts and SIGTERM, and return its exit code.

    Raises:
        JobError: if Ray or another host is lost, or the driver does not stop.
    """
    stop_sent = False
    while driver.code is None:
        time.sleep(POLL_SECONDS / 2)
        entry.processes.reap()
        if server:
            _check_others(entry, server)
        if entry.stop_requested and not stop_sent:
            stop_sent = True
            entry.log("received SIGTERM: saving a checkpoint")
            driver.send_signal(signal.SIGTERM)
        if entry.seconds_since_stop() > STOP_SECONDS:
            raise JobError(STOPPED, f"main.py did not stop within {STOP_SECONDS:.0f} s of SIGTERM")
        if ray.code is not None and driver.code is None:
            failure = stopped_ray(entry.cluster.head.name, ray)
            raise JobError(failure.code, failure.reason)
    return driver.code


def _check_others(entry: Entry, server: VerdictServer) -> None:
    """Act on what the other hosts report, and on hosts that stopped responding.

    Raises:
        JobError: if one of them failed or is lost.
    """
    for heartbeat in list(server.heartbeats.values()):
        if heartbeat.stopping:
            entry.request_stop()
        if heartbeat.failure:
            raise JobError(heartbeat.failure.code, heartbeat.failure.reason)
    for name, seconds in server.silent(LOST_SECONDS).items():
        raise JobError(HOST_LOST, f"{name} stopped responding: no heartbeat for {seconds:.0f} s")


def await_heartbeats(entry: Entry, server: VerdictServer) -> None:
    """Wait for a new heartbeat from every other host, so that a lost host is blamed, not the training it interrupted.

    Raises:
        JobError: if one of them failed or is lost.
    """
    failed_at = time.monotonic()
    all_alive = False
    while not all_alive:
        time.sleep(POLL_SECONDS / 5)
        entry.processes.reap()
        all_alive = all(heartbeat.at >= failed_at for heartbeat in list(server.heartbeats.values()))
        _check_others(entry, server)


def _collect(entry: Entry, job: Job, verdict: Verdict) -> Verdict:
    """Copy the results to where SageMaker collects them, or those that exist if the run failed."""
    finished = ["finished"] if verdict.code == FINISHED else []
    outputs = _start_module(entry, "outputs", job.storage_path, job.run_name, *finished)
    while outputs.code is None and entry.seconds_since_stop() < STOP_SECONDS:
        time.sleep(POLL_SECONDS / 5)
        entry.processes.reap()
    if verdict.code == FINISHED and outputs.code != 0:
        return Verdict(RESULTS_NOT_WRITTEN, describe_lost_results(outputs))
    return verdict


def describe_lost_results(outputs: Child) -> str:
    """Why the results were not copied: the cause first, since SageMaker truncates the reason."""
    if outputs.code is None:
        return "SIGTERM arrived before the results were copied"
    if outputs.code < 0:
        return describe_kill("the program that copies the results", outputs.code)
    return first_failure(outputs.last_lines())
