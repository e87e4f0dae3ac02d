"""The chaos command's choice of faults, and what it says when a machine cannot run it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.cluster.kinds import EXIT_CODES, KINDS, PHASES, Plan, make_plan
from benchmarks.faults.cluster.ray_cluster import is_idle_without_job
from benchmarks.faults.cluster.round import ClusterRound
from benchmarks.faults.cluster.s3_proxy import BROKEN, THROTTLED, FaultProxy
from benchmarks.faults.cluster.verdict import problems_of_end, problems_of_steps, resumed_steps
from benchmarks.record import write_json
from support.command import ROOT, wait_until

NAMES = list(KINDS)


def chaos(*flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.faults.chaos", *map(str, flags)]
    settings = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'ray_app'}"} | environment
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=100)


def plan_of(kind: str, phase: str = "training") -> Plan:
    return Plan(0, (KINDS[kind],), phase, 4.0, 0.5, 0.0)


def test_plan_of_a_round_depends_only_on_its_seed() -> None:
    plan = make_plan(7, 2, NAMES, PHASES)
    assert plan == make_plan(7, 2, NAMES, PHASES)
    assert plan.random(plan.kinds[1]).random() == plan.random(plan.kinds[1]).random()
    assert len({(plan.phase, plan.moment) for plan in (make_plan(seed, 1, NAMES, PHASES) for seed in range(9))}) == 9


def test_rounds_use_all_kinds_in_turn_and_all_phases() -> None:
    plans = [make_plan(seed, 1, NAMES, PHASES) for seed in range(len(NAMES))]
    assert [str(plan) for plan in plans] == NAMES
    assert {plan.phase for plan in plans} == set(PHASES)


def test_faults_of_a_round_are_different() -> None:
    assert all(len(set(make_plan(seed, 2, NAMES, PHASES).kinds)) == 2 for seed in range(99))


def test_hosts_are_hit_in_all_phases() -> None:
    plans = [make_plan(seed, 1, NAMES, PHASES) for seed in range(500)]
    hit = [(plan.phase, plan.random(plan.kinds[0]).choice(range(3))) for plan in plans]
    assert min(hit.count((phase, host)) for phase in PHASES for host in range(3)) > 15


def test_fault_that_ends_the_command_comes_last() -> None:
    for seed in range(99):
        plan = make_plan(seed, 2, ("kill driver", "kill worker", "partition"), PHASES)
        assert plan.kinds[-1].name == "kill driver" or "kill driver" not in str(plan)


def test_checkpoints_are_damaged_only_once_there_is_one() -> None:
    plans = [make_plan(seed, 1, ["damaged checkpoint"], PHASES) for seed in range(99)]
    assert {plan.phase for plan in plans} == {*PHASES} - {"start"}


@pytest.mark.parametrize(
    ("same", "missed", "problems", "verdict"),
    [
        (True, [], [], "passed"),
        (True, ["freeze worker: there was no worker"], [], "not hit"),
        (True, ["freeze worker: there was no worker"], ["processes remained"], "FAILED"),
        (False, [], [], "FAILED"),
        (None, [], [], "FAILED"),
    ],
)
def test_round_whose_fault_hit_nothing_has_not_passed(
    same: bool | None, missed: list[str], problems: list[str], verdict: str
) -> None:
    result = ClusterRound(0, "freeze worker", "end", "local", 4.0, same=same, missed=missed, problems=problems)
    assert result.verdict == verdict


def test_command_has_to_end_with_the_code_of_its_signal() -> None:
    output = "Stopped. To resume: main.py --resume chaos"
    for kind, code in EXIT_CODES.items():
        assert not problems_of_end(plan_of(kind), code, output, False)
        assert not problems_of_end(plan_of(kind, "end"), 0, "", False)
        assert not problems_of_end(plan_of(kind, "start"), 128 - code, "", False)
        for other in (0, 1, 128 - code):
            expected = [f"the command ended with {other} instead of {code}"]
            assert problems_of_end(plan_of(kind), other, output, False) == expected


def test_only_a_killed_command_may_be_silent() -> None:
    assert not problems_of_end(plan_of("freeze driver"), -9, "", False)
    silent = ["the command ended with 1 without saying why"]
    assert problems_of_end(plan_of("freeze driver"), 1, "Traceback", False) == silent
    assert not problems_of_end(plan_of("freeze driver"), 1, "error: the disk is full", False)
    dump = "(raylet) Raylet is terminated. Last 20 lines of the Raylet logs:\n" + "    [state-dump] 0\n" * 20
    assert not problems_of_end(plan_of("kill raylet"), 1, f"error: the controller died\n{dump}", False)
    assert problems_of_end(plan_of("kill raylet"), 1, dump, False) == silent
    assert problems_of_end(plan_of("kill worker"), 1, "error: no", True) == [
        "the command ended with 1, although no fault hit it"
    ]


def test_all_resumptions_count() -> None:
    steps = resumed_steps(["Resumed at step 20 from checkpoint_20\nResumed at step 4 from checkpoint_4\n"])
    assert steps == [20, 4]
    assert problems_of_steps(plan_of("kill worker"), steps, [10, 20], 23) == [
        "resumed at step 4, although step 20 was complete"
    ]
    assert not problems_of_steps(plan_of("damaged checkpoint"), [10], [10, 20], 23)
    assert resumed_steps(["Resumed at step 20", "epoch 1/3"]) == [20, 0]
    assert resumed_steps(["", "Run chaos is already finished: there is nothing to train."]) == []
    assert resumed_steps(["restart 1 of at most 10\nepoch 1/3\n\nFinished chaos"]) == [0]
    assert resumed_steps(["restart 1 of at most 10\nResumed at step 20\n\nFinished chaos"]) == [20]
    # The line of another host may come late.
    assert resumed_steps(["Resumed at step 20\nrestart 1 of at most 10\n\nFinished chaos"]) == [20]
    # Its workers failed before they resumed.
    assert resumed_steps(["restart 1 of at most 1\nerror: training failed"]) == []


def test_signals_that_save_lose_no_step() -> None:
    assert not problems_of_steps(plan_of("SIGTERM to driver"), [24], [20], 23)
    assert problems_of_steps(plan_of("SIGTERM to driver"), [20], [20], 23) == [
        "resumed at step 20, although step 23 was reached before the signal"
    ]
    assert not problems_of_steps(plan_of("Ctrl-C to driver"), [20], [20], 23)


@pytest.mark.parametrize(("job", "may_remain"), [("02000000", False), ("ffffffff", True), (None, True)])
def test_spare_processes_of_a_run_may_not_remain(job: str | None, may_remain: bool) -> None:
    environment = {"STARTED": "1"} | ({"RAY_JOB_ID": job} if job else {})
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            # Empty until the program is loaded.
            wait_until(lambda: b"STARTED" in Path(f"/proc/{process.pid}/environ").read_bytes())
            assert is_idle_without_job(process.pid, "ray::IDLE") == may_remain
            assert not is_idle_without_job(process.pid, "ray::RayTrainWorker")
        finally:
            process.kill()


def test_faults_of_s3_end_in_any_order() -> None:
    proxy = FaultProxy()
    faults = [lambda _method, _path: THROTTLED, lambda _method, _path: BROKEN]
    for first, last in (faults, reversed(faults)):
        proxy.choosers += faults
        assert proxy.fault_of("GET", "/") == THROTTLED
        proxy.choosers.remove(first)
        assert proxy.fault_of("GET", "/") == last("GET", "/")
        proxy.choosers.remove(last)
        assert proxy.fault_of("GET", "/") is None
    # The list comes first, then `choose`.
    proxy.choose = lambda _method, _path: BROKEN
    assert proxy.fault_of("GET", "/") == BROKEN


def test_results_without_a_number_are_null_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"growth": [{"surely": -math.inf, "median": math.nan, "last": 1.5}]})
    assert json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)["growth"] == [
        {"surely": None, "median": None, "last": 1.5}
    ]


def test_more_faults_than_kinds_are_refused() -> None:
    result = chaos("--hosts", 3, "--faults", 2, "--kinds", "kill worker", "kill worker")
    assert result.returncode == 2
    assert "--faults 2: expected 1 to 1, the number of --kinds." in result.stderr


def test_machine_without_the_commands_for_hosts_is_refused_with_their_packages(tmp_path: Path) -> None:
    result = chaos("--hosts", 3, PATH=str(tmp_path))
    assert result.returncode == 2
    needs = "needs Linux and root for network namespaces" if os.geteuid() else "needs iproute2, nftables, util-linux"
    assert result.stderr.splitlines()[-1] == f"chaos.py: error: --hosts {needs}."


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    result = chaos("--kinds", "earthquake")
    assert result.returncode == 2
    assert "--kinds earthquake: expected some of: worker kill; " in result.stderr
