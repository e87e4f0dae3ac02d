"""The chaos command on a cluster of hosts: one round without a node, one with a lost link."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.cluster.rounds import missing_requirement
from support.command import PATIENCE, ROOT

# With these seeds, the faults are brief.
KINDS, FIRST_SEED = ("kill raylet", "partition, outgoing"), 2


@pytest.mark.e2e
def test_runs_on_hosts_survive_faults_with_the_same_weights(tmp_path: Path) -> None:
    if problem := missing_requirement(KINDS):
        pytest.skip(problem)
    command = [sys.executable, "-m", "benchmarks.faults.chaos", "--hosts", "3", "--phases", "training", "save"]
    command += ["--seed", str(FIRST_SEED), "--rounds", "2", "--kinds", *KINDS, "--json", str(tmp_path / "rounds.json")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'ray_app'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = json.loads((tmp_path / "rounds.json").read_text())["rounds"]
    assert [(result["faults"], result["exit_codes"], result["passed"]) for result in rounds] == [
        (kind, [0], True) for kind in KINDS
    ]
