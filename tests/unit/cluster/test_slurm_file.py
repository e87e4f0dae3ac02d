"""slurm.sbatch as text, and how it refuses a wrong start."""

import re
import subprocess
from pathlib import Path

import pytest

from support.command import ROOT
from support.launcher import RAY
from vgg_ddp.driver.ray_files import MAX_FOLDER_BYTES
from vgg_ddp.driver.signals import SECONDS_TO_SAVE

SCRIPT = ROOT / "cluster" / "slurm.sbatch"
TEXT = SCRIPT.read_text()
JOB = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}


def directives() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", TEXT, re.MULTILINE)
    return dict(found)


def run_script(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(folder)}
    command = ["bash", str(SCRIPT), *flags]
    return subprocess.run(command, env=path | environment, cwd=folder, capture_output=True, text=True, timeout=30)


def test_script_parses() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True).stderr == ""


def test_job_requeues_and_has_time_to_save_before_its_limit() -> None:
    options = directives()
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    target, name, seconds = re.split("[:@]", options["signal"])
    # Slurm may send it up to a minute late.
    assert (target, name) == ("B", "TERM") and int(seconds) - 60 > SECONDS_TO_SAVE
    # The first command after them would hide them from sbatch.
    assert TEXT.rindex("#SBATCH") < TEXT.index("\nset -euo pipefail\n")


def test_ray_listens_where_it_must_and_requires_a_token() -> None:
    assert "0.0.0.0" not in TEXT
    (head,) = [line for line in TEXT.splitlines() if "options+=(--head" in line]
    assert '--node-ip-address="$head_ip"' in head and "--dashboard-host=127.0.0.1" in head
    assert TEXT.index("export RAY_AUTH_MODE=token") < TEXT.index("ray start")
    assert TEXT.index("unset RAY_AUTH_TOKEN ") < TEXT.index("ray start")


def test_ray_has_the_options_that_the_script_uses() -> None:
    result = subprocess.run([RAY, "start", "--help"], capture_output=True, text=True, timeout=60)
    used = set(re.findall(r"--[\w-]+", " ".join(re.findall(r"options\+?=\(.*\)", TEXT))))
    assert len(used) > 6
    assert used <= set(re.findall(r"--[\w-]+", result.stdout))


def test_rays_folder_is_short_enough_for_its_sockets() -> None:
    (folder,) = re.findall(r"^export temp=(\S+)$", TEXT, re.MULTILINE)
    assert len(folder.replace("$SLURM_JOB_ID", "1" * 10)) <= MAX_FOLDER_BYTES
    assert '--temp-dir="$temp/ray"' in TEXT and 'mkdir -m 700 "$temp"' in TEXT


@pytest.mark.parametrize(
    ("environment", "files", "message"),
    [
        ({}, [], "not in a Slurm job: submit it with sbatch cluster/slurm.sbatch"),
        (JOB, [], "has no ray_app/main.py: run sbatch in the root of the repository"),
        (JOB, ["ray_app/main.py"], "no ray command on n1: run sbatch with the virtual environment active"),
    ],
    ids=["without-slurm", "elsewhere", "without-ray"],
)
def test_wrong_start_ends_with_one_line(
    environment: dict[str, str], files: list[str], message: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    result = run_script(tmp_path, **environment)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
