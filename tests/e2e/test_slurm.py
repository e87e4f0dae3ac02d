"""slurm.sbatch with TLS on a real Slurm: a stopped run is requeued, resumes, and ends with the same weights."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import PATIENCE, count_checkpoints, torchrun_command, wait_until
from support.packets import CONTENT_OF_RAY, capture
from support.slurm import Slurm, missing_requirement, slurm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement()),
]

EPOCHS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(nodes=2) as made:
        yield made


def test_stopped_job_saves_requeues_and_resumes_to_the_same_weights(
    cluster: Slurm, tiny_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_data, cluster.repository / "tiny")
    flags = ["--device", "cpu", "--data", cluster.repository / "tiny", "--epochs", EPOCHS, "--batch-size", 40]
    flags += ["--precision", "fp32"]
    sbatch = ["RAY_USE_TLS=1", "sbatch", "--gpus-per-node=1", "cluster/slurm.sbatch", "--num-workers", 2, *flags]
    job = cluster.submit(" ".join(map(str, sbatch)))
    run = cluster.repository / "runs" / f"slurm-{job}"
    with capture(cluster.network.bridge, CONTENT_OF_RAY) as seen:
        wait_until(lambda: "epoch 1/" in cluster.log(job))
    # Encrypted, except for the gradients.
    assert seen.size_bytes > 100e6
    assert not any(seen.counts.values()), seen
    assert (cluster.repository / f".slurm-{job}").stat().st_mode & 0o777 == 0o700
    cluster.run(f"scancel --batch --signal=TERM {job}")
    cluster.wait_for("PENDING", job)
    assert "Ray:       2 nodes, 2 CPUs, 2 GPUs" in cluster.log(job)
    assert "exit code 143 after SIGTERM: back to the queue" in cluster.log(job)
    assert count_checkpoints(run)
    (saved,) = re.findall(r"Stopped after step (\d+)\.", cluster.log(job))
    # Slurm lets a requeued job wait for two minutes.
    cluster.run(f"scontrol update JobId={job} StartTime=now")
    # Now before Ray has started.
    wait_until((cluster.repository / f".slurm-{job}").exists)
    cluster.run(f"scancel --batch --signal=TERM {job}")
    cluster.wait_for("PENDING", job)
    assert cluster.log(job).count("after SIGTERM: back to the queue") == 2
    cluster.run(f"scontrol update JobId={job} StartTime=now")
    cluster.wait_for("COMPLETED", job)
    assert re.findall(r"Resumed at step (\d+)", cluster.log(job)) == [saved]
    assert 0 < int(saved) < EPOCHS * 6
    # Neither tokens nor Ray's files stay behind.
    assert not (cluster.repository / f".slurm-{job}").exists()
    assert [list((host.folder / "tmp").iterdir()) for host in cluster.network.hosts.values()] == [[], []]
    # On as many cores, since their number decides in which order the CPU sums. Sooner than with Ray.
    command = ["taskset", "--cpu-list", "0,1", *torchrun_command(2, *flags, "--run-name", "same")]
    same = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert same.returncode == 0, same.stdout + same.stderr
    weights = (tmp_path / "runs" / "same" / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == weights
