"""Disturb runs at random moments, and compare their final weights with those of an undisturbed run.

    python -m benchmarks.faults.chaos --rounds 20 --seed 0
    sudo "$(which python)" -m benchmarks.faults.chaos --hosts 3 --rounds 60 --seed 0

On one machine, each round trains the bundled sample (or --data) under Ray Train and disturbs the run once, at a random
step:

    worker kill     kill -9 of one worker; Ray Train restarts all workers from the newest checkpoint
    driver kill     kill -9 of the command; no process may remain; then resume the run
    terminate       SIGTERM to the command; expects exit code 143 and a checkpoint; then resume the run
    node drain      a cluster node is drained and then removed, like a spot instance; another node joins
    corruption      like driver kill, but with a random byte of the newest checkpoint changed before the resume

For each round, prints the step of the checkpoint that training resumed from, the number of repeated steps (estimated
from the time since that checkpoint), and the seconds to the first new step, from the kill or from the resuming command.
Exit code 1 if a run does not finish, or if its model.safetensors differs in any byte.

With --hosts, the cluster has this many hosts: namespaces of this machine, each with a network of its own. The command
runs on the first one, the workers on the others. Each round injects --faults faults of processes, links, clocks, or
storage, during the start, the training, the evaluation, the save, or the end (--phases). Dead nodes are replaced, and a
run that ended is resumed once the fault is over. What a round does depends only on its seed, --kinds, --phases,
--faults, and --hosts: with the same, --seed 17 --rounds 1 repeats it. Rounds whose fault came too late, or found
nothing to hit, count separately. Needs root, iproute2, and nftables; cc for the kinds with clocks, moto for those with
S3. Exit code 1 if a round fails:

    it did not end in time, or ended without saying why, or could not be resumed
    its model.safetensors differs in any byte
    a process, a temporary file, or a lock remained
    it lost more than the work since the newest checkpoint
"""

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.faults import local_rounds
from benchmarks.faults.cluster import kinds, rounds
from benchmarks.faults.cluster.round import ClusterRound
from benchmarks.program import end_on_signals
from benchmarks.record import new_parser, write_json

# On one machine, and with --hosts.
LOCAL_DEFAULTS = {"rounds": 20, "data": "sample", "epochs": 1, "batch_size": 120}
HOSTS_DEFAULTS = {"rounds": 60, "data": None, "epochs": 3, "batch_size": 24}


def main() -> int:
    parser = new_parser(__doc__)
    add_flags(parser)
    options = parser.parse_args()
    for name, value in (HOSTS_DEFAULTS if options.hosts else LOCAL_DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    known = list(kinds.KINDS) if options.hosts else list(local_rounds.KINDS)
    options.kinds = options.kinds or known
    if unknown := [name for name in options.kinds if name not in known]:
        parser.error(f"--kinds {unknown[0]}: expected some of: {'; '.join(known)}")
    if options.hosts is not None:
        if options.hosts <= options.num_workers - bool(options.head_cpus):
            parser.error(f"--hosts {options.hosts}: expected more hosts than --num-workers {options.num_workers}.")
        if not 1 <= options.faults <= len(set(options.kinds)):
            parser.error(f"--faults {options.faults}: expected 1 to {len(set(options.kinds))}, the number of --kinds.")
        if options.epochs < 2:
            parser.error(f"--epochs {options.epochs}: expected at least 2 with --hosts.")
        if missing := rounds.missing_requirement(options.kinds):
            parser.error(f"--hosts {missing}.")
    end_on_signals()
    return on_hosts(options) if options.hosts else on_one_machine(options)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help="default: 20, with --hosts 60")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--data", help="default: sample, with --hosts 240 images of it")
    parser.add_argument("--epochs", type=int, help="default: 1, with --hosts 3")
    parser.add_argument("--batch-size", type=int, help="global; default: 120, with --hosts 24")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="disturbances, used in turn; default: all")
    hosts = parser.add_argument_group("on a cluster")
    hosts.add_argument("--hosts", type=int, help="number of hosts; default: none, everything on this machine")
    hosts.add_argument("--head-cpus", type=int, choices=(0, 1), default=0, help="1: the head may have a worker, too")
    hosts.add_argument("--faults", type=int, default=1, help="faults in each round; default: %(default)s")
    hosts.add_argument("--phases", nargs="+", choices=kinds.PHASES, default=kinds.PHASES, help="when faults come")
    hosts.add_argument(
        "--limit-seconds",
        type=float,
        default=300,
        help="time limit before the fault, and again after it; 300 s more with clock faults; default: %(default)s",
    )
    hosts.add_argument("--logs", type=Path, help="folder for the output of each round; default: kept if one fails")


def training_flags(options: argparse.Namespace, data: str, checkpoint_every_seconds: int) -> list[object]:
    flags: list[object] = ["--num-workers", options.num_workers, "--data", data, "--epochs", options.epochs]
    flags += ["--recipe", "classic", "--batch-size", options.batch_size, "--precision", "fp32"]
    return [*flags, "--checkpoint-every-seconds", checkpoint_every_seconds]


def on_one_machine(options: argparse.Namespace) -> int:
    data = options.data if options.data == "sample" else os.path.abspath(options.data)
    flags = training_flags(options, data, checkpoint_every_seconds=2)
    results: list[local_rounds.Round] = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        # A private home directory: with another cluster's token from the user's, the nodes could not connect.
        os.environ.update(HOME=name, RAY_TMPDIR=name, RAY_USAGE_STATS_ENABLED="0")
        try:
            for result in local_rounds.run_rounds(options.kinds, options.rounds, options.seed, Path(name), flags):
                results.append(result)
        finally:
            good = sum(result.same and not result.problem for result in results)
            write_outcome(options, flags, good, [vars(result) for result in results])
    return 0 if good == options.rounds else 1


def on_hosts(options: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    data = os.path.abspath(options.data) if options.data else str(rounds.make_data(folder / "data"))
    logs = options.logs or folder
    logs.mkdir(parents=True, exist_ok=True)
    flags = [*training_flags(options, data, checkpoint_every_seconds=1), *rounds.FLAGS]
    seeds = range(options.seed, options.seed + options.rounds)
    plans = [kinds.make_plan(seed, options.faults, options.kinds, options.phases) for seed in seeds]
    played = rounds.run_rounds(plans, options.hosts, options.head_cpus, flags, logs.resolve(), options.limit_seconds)
    results: list[ClusterRound] = []
    try:
        # Whatever ends the rounds, the hosts are powered off before the results are written.
        with closing(played):
            for result in played:
                results.append(result)
    finally:
        rounds.print_table(results)
        verdicts = [result.verdict for result in results]
        described = [vars(result) | {"verdict": result.verdict, "passed": result.passed} for result in results]
        write_outcome(options, flags, verdicts.count("passed"), described)
        print(f"not hit: {verdicts.count('not hit')}; failed: {verdicts.count('FAILED')}")
        if options.logs or (len(results) == options.rounds and "FAILED" not in verdicts):
            shutil.rmtree(folder)
        else:
            print(f"logs: {folder}")
    # Rounds that hit nothing tell nothing.
    return 1 if "FAILED" in verdicts or "passed" not in verdicts else 0


def write_outcome(options: argparse.Namespace, flags: list[object], good: int, results: list[dict[str, Any]]) -> None:
    """Print and write the outcome of the rounds so far."""
    print(f"\n{good} of {len(results)} rounds passed: they ended with the weights of the undisturbed run")
    if len(results) < options.rounds:
        print(f"{options.rounds - len(results)} rounds were not played")
    settings = {"rounds": options.rounds, "seed": options.seed, "flags": [str(flag) for flag in flags]}
    if options.hosts:
        settings |= {"hosts": options.hosts, "head_cpus": options.head_cpus, "faults": options.faults}
        settings |= {"kinds": options.kinds, "phases": list(options.phases)}
    write_json(options.json, {"settings": settings, "rounds": results})


if __name__ == "__main__":
    sys.exit(main())
