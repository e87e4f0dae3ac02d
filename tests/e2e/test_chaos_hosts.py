"""The chaos command on a cluster of hosts: a round each for a process, a link, the disk, and a checkpoint."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.faults.cluster.rounds import missing_requirement
from support.command import PATIENCE, ROOT

# With these seeds, the faults are brief, and hit these hosts. Killing the head's raylet would end the command.
KINDS = ("kill raylet", "partition, outgoing", "damaged checkpoint", "full disk")
FIRST_SEED = 428
EXPECTED_HOSTS = (["host1"], ["host1"], ["host0"], [])
# The driver is killed before its checkpoint is damaged, and then resumed.
EXPECTED_EXIT_CODES = ([0], [0], [-9, 0], [0])
SECONDS_TO_CLEAN_UP = 120


@pytest.mark.alone
@pytest.mark.e2e
@pytest.mark.timeout(4 * PATIENCE)
def test_runs_on_hosts_survive_faults_with_the_same_weights(tmp_path: Path) -> None:
    if problem := missing_requirement(KINDS):
        pytest.skip(problem)
    command = [sys.executable, "-m", "benchmarks.faults.chaos", "--hosts", "3", "--phases", "training", "save"]
    command += ["--seed", str(FIRST_SEED), "--rounds", str(len(KINDS)), "--kinds", *KINDS]
    command += ["--json", str(tmp_path / "rounds.json")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'ray_app'}"}
    log = tmp_path / "log"
    with log.open("w") as output:
        chaos = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            with suppress(subprocess.TimeoutExpired):
                chaos.wait(3 * PATIENCE)
        finally:
            # Killed at once, it would leave its hosts running. After its end, this does nothing.
            chaos.terminate()
            chaos.wait(SECONDS_TO_CLEAN_UP)
    assert chaos.returncode == 0, log.read_text()
    rounds = json.loads((tmp_path / "rounds.json").read_text())["rounds"]
    # After the host, the notes name the damaged file.
    assert [(result["faults"], result["notes"][:1], result["exit_codes"], result["verdict"]) for result in rounds] == [
        (kind, hosts, codes, "passed")
        for kind, hosts, codes in zip(KINDS, EXPECTED_HOSTS, EXPECTED_EXIT_CODES, strict=True)
    ]
