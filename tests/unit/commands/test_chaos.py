"""The chaos command's choice of faults, and what it says when a machine cannot run it."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.cluster.kinds import KINDS, PHASES, make_plan
from support.command import ROOT

NAMES = list(KINDS)


def chaos(*flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.faults.chaos", *map(str, flags)]
    settings = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'ray_app'}"} | environment
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=100)


def test_plan_of_a_round_depends_only_on_its_seed() -> None:
    assert make_plan(7, 2, NAMES, PHASES) == make_plan(7, 2, NAMES, PHASES)
    assert len({(plan.phase, plan.moment) for plan in (make_plan(seed, 1, NAMES, PHASES) for seed in range(9))}) == 9


def test_rounds_use_all_kinds_in_turn_and_all_phases() -> None:
    plans = [make_plan(seed, 1, NAMES, PHASES) for seed in range(len(NAMES))]
    assert [str(plan) for plan in plans] == NAMES
    assert {plan.phase for plan in plans} == set(PHASES)


def test_faults_of_a_round_are_different() -> None:
    assert all(len(set(make_plan(seed, 2, NAMES, PHASES).kinds)) == 2 for seed in range(99))


def test_machine_without_the_commands_for_hosts_is_refused_with_their_packages(tmp_path: Path) -> None:
    result = chaos("--hosts", 3, PATH=str(tmp_path))
    assert result.returncode == 2
    needs = "needs Linux and root for network namespaces" if os.geteuid() else "needs iproute2, nftables, util-linux"
    assert result.stderr.splitlines()[-1] == f"chaos.py: error: --hosts {needs}."


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    result = chaos("--kinds", "earthquake")
    assert result.returncode == 2
    assert "--kinds earthquake: expected some of: worker kill; " in result.stderr
