"""Rounds on a cluster of hosts: keep the cluster, its storage, and S3 ready, play each plan, and report."""

import os
import socket
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.faults.cluster import clock, hosts
from benchmarks.faults.cluster.kinds import KINDS, Plan
from benchmarks.faults.cluster.ray_cluster import RayCluster
from benchmarks.faults.cluster.round import ClusterRound, play
from benchmarks.faults.cluster.s3_proxy import FaultProxy, fault_proxy
from benchmarks.faults.cluster.stage import RUN, Reference, Stage, train_undisturbed
from benchmarks.small_data import write_small_data
from vgg_ddp.run.storage import Folder

# Shorter than the longest faults.
FLAGS = ("--collective-timeout-seconds", 10, "--max-failures", 10)
# moto and the proxy would spend most of the time on checkpoints.
S3_FLAGS = ("--checkpoint-every-seconds", 3)
# Boost's timers, which Ray uses, can stall for this long after the clock is set back and then forward.
SECONDS_OF_STALLED_TIMERS = 300
IMAGES = {"train": 240, "test": 400}
OF_OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
BUCKET = "chaos"
AWS = {
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def missing_requirement(names: Sequence[str]) -> str:
    """What this machine lacks for these kinds of faults; empty if nothing."""
    if problem := hosts.missing_requirement():
        return problem
    kinds = [KINDS[name] for name in names]
    if any(kind.with_clocks for kind in kinds) and not clock.is_available():
        return "needs a C compiler (cc) for the kinds with clocks"
    if any(kind.on_s3 for kind in kinds) and not find_spec("moto"):
        return "needs moto[server] for the kinds with S3"
    return ""


def make_data(folder: Path) -> Path:
    """A small part of the bundled sample, so that a round takes less than a minute."""
    return write_small_data(folder, lambda split, _: range(IMAGES[split]))


@contextmanager
def s3(address: str) -> Iterator[tuple[FaultProxy, str, str]]:
    """Run moto's server with a bucket, and a proxy in front; yield the proxy, its endpoint, and that of the server."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    direct = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import boto3
        from botocore.config import Config

        patient = Config(retries={"max_attempts": 20, "mode": "standard"})
        boto3.client("s3", endpoint_url=direct, config=patient).create_bucket(Bucket=BUCKET)
        with fault_proxy(direct, address) as (proxy, endpoint):
            yield proxy, endpoint, direct
    finally:
        server.kill()
        server.wait()


class Rounds:
    """Plays plans on one cluster, which is started again when its head is dead, and before and after clock faults."""

    def __init__(self, network: hosts.Network, head_cpus: int, flags: list[object], limit_seconds: float) -> None:
        self._cluster = RayCluster(network, head_cpus)
        self._flags, self._limit_seconds = flags, limit_seconds
        self._s3: tuple[FaultProxy, str] | None = None
        self._resources = ExitStack()
        self._references: dict[bool, Reference] = {}
        self._is_ready = False

    def __enter__(self) -> "Rounds":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def play(self, plan: Plan, logs: Path) -> ClusterRound:
        self._prepare(plan.on_s3, plan.with_clocks)
        if plan.on_s3 not in self._references:
            stage = self._stage(plan.on_s3, logs / f"undisturbed{'-s3' * plan.on_s3}.log")
            self._references[plan.on_s3] = train_undisturbed(stage)
        stage = self._stage(plan.on_s3, logs / f"{plan.seed}.log")
        if plan.with_clocks:
            stage.limit_seconds += SECONDS_OF_STALLED_TIMERS
        return play(stage, plan, self._references[plan.on_s3])

    def start_afresh(self) -> None:
        """Start the cluster again before the next round, whatever is left of the last one."""
        self._is_ready = False

    def _prepare(self, on_s3: bool, with_clocks: bool) -> None:
        """Bring the cluster, with or without clocks that can be set, to all of its nodes."""
        cluster = self._cluster
        if on_s3 and self._s3 is None:
            proxy, endpoint, direct = self._resources.enter_context(s3(cluster.network.gateway))
            os.environ["AWS_ENDPOINT_URL"] = direct
            self._s3 = proxy, endpoint
            cluster.environment = AWS | {"AWS_ENDPOINT_URL": endpoint}
            # Its processes have been started without the credentials.
            self._is_ready = False
        if self._is_ready and not with_clocks:
            cluster.restore()
            return
        cluster.extra = {host.name: clock.environment(host.folder) for host in cluster.hosts if with_clocks}
        cluster.start()
        # Clocks that were set need a cluster of their own.
        self._is_ready = not with_clocks

    def _stage(self, on_s3: bool, log: Path) -> Stage:
        """A stage with empty storage."""
        storage = f"s3://{BUCKET}/runs" if on_s3 else str(self._cluster.network.shared / "runs")
        root = Folder.at(storage)
        root.delete(RUN)
        proxy = self._s3[0] if on_s3 and self._s3 else None
        if proxy:
            proxy.listings.clear()
        log.unlink(missing_ok=True)
        flags = [*self._flags, *S3_FLAGS] if on_s3 else self._flags
        return Stage(self._cluster, flags, storage, root, proxy, log, self._limit_seconds)


def run_rounds(
    plans: Sequence[Plan], count: int, head_cpus: int, flags: list[object], logs: Path, limit_seconds: float
) -> Generator[ClusterRound, None, None]:
    """Play the plans on a cluster of `count` hosts, and print a line for each round."""
    os.environ.update(AWS)
    for name in OF_OTHER_CLUSTERS:
        os.environ.pop(name, None)
    print(f"{'seed':>5} {'s':>4} {'code':>6} {'lost':>4} {'recovered s':>11}  faults", flush=True)
    with hosts.network(count) as network, Rounds(network, head_cpus, flags, limit_seconds) as stage:
        for plan in plans:
            started = time.monotonic()
            try:
                result = stage.play(plan, logs)
            except Exception as error:
                # Hours of rounds are worth more than this one, which counts as failed.
                result = ClusterRound(plan.seed, str(plan), plan.phase, "", plan.seconds)
                where = traceback.extract_tb(error.__traceback__)[-1]
                result.problems.append(f"the round itself failed: {error!r} ({where.filename}:{where.lineno})")
            if result.verdict == "FAILED":
                stage.start_afresh()
            result.total_seconds = time.monotonic() - started
            print_round(result)
            yield result


def print_round(result: ClusterRound) -> None:
    codes = ",".join(map(str, result.exit_codes))
    what = f"{result.faults} ({result.phase}, {result.seconds:.0f} s; {'; '.join(result.notes)})"
    recovered = "-" if result.recovery_seconds is None else f"{result.recovery_seconds:.1f}"
    numbers = f"{result.total_seconds:4.0f} {codes:>6} {result.lost_steps:>4} {recovered:>11}"
    print(f"{result.seed:>5} {numbers}  {what}: {result.verdict}", flush=True)
    missed = [f"not hit: {miss}" for miss in result.missed]
    for line in [*result.problems, *["the weights differ"] * (result.same is False), *missed]:
        print(f"{'':>6}{line}", flush=True)


def print_table(rounds: Sequence[ClusterRound]) -> None:
    """Rounds that passed, of those that were hit or failed; lost steps, and seconds to recover, by kind."""
    print(f"\n{'faults':<44} {'passed':>7} {'not hit':>7} {'lost steps, max':>15} {'recovered s, median':>19}")
    for faults in dict.fromkeys(result.faults for result in rounds):
        same = [result for result in rounds if result.faults == faults]
        verdicts = [result.verdict for result in same]
        judged = [result for result in same if result.verdict != "not hit"]
        recovered = [result.recovery_seconds for result in judged if result.recovery_seconds is not None]
        median = f"{statistics.median(recovered):.1f}" if recovered else "-"
        lost = max((result.lost_steps for result in judged), default=0)
        counts = f"{verdicts.count('passed'):>3}/{len(judged):<3} {verdicts.count('not hit'):>7}"
        print(f"{faults:<44} {counts} {lost:>15} {median:>19}")
