"""A real Slurm on simulated machines: a controller and a daemon per host, without accounts and cgroups."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import ssh_hosts
from support.command import ROOT, wait_until

COMMANDS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
SHARED = ("ray_app", "cluster")

CONFIG = """ClusterName=test
SlurmctldHost=m0({controller})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
PartitionName=main Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeAddr={ip} CPUs=1 RealMemory=4000 Gres=gpu:1\n"


def missing_requirement() -> str:
    """What this machine lacks to run Slurm; empty if nothing."""
    path = os.environ.get("PATH", "") + ":" + ssh_hosts.SYSTEM_PATH
    if missing := [package for command, package in COMMANDS.items() if not shutil.which(command, path=path)]:
        return f"needs {', '.join(missing)}"
    return ssh_hosts.missing_requirement()


@dataclass(frozen=True)
class Slurm:
    """Hosts with a Slurm, and a copy of the repository that they share."""

    network: ssh_hosts.Network
    repository: Path

    def run(self, command: str, host: str = "m0") -> str:
        """Run a command on a host, in the repository; return its output."""
        ssh = ["ssh", "-i", str(self.network.private_key), "-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=no"]
        ssh += ["-o", "UserKnownHostsFile=/dev/null", f"root@{self.network.hosts[host].ip}"]
        result = subprocess.run(
            [*ssh, f"cd {self.repository} && {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def submit(self, command: str) -> str:
        """Run sbatch; return the number of the job."""
        return self.run(command).rpartition(" ")[2].strip()

    def log(self, job: str) -> str:
        file = self.repository / f"slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def wait_for(self, state: str, job: str) -> None:
        """Wait until a job has this state; fail if it ends in another."""

        def current() -> str:
            (found,) = re.findall(r"JobState=(\w+)", self.run(f"scontrol show job {job}"))
            return str(found)

        wait_until(lambda: current() in {state, "COMPLETED", "FAILED", "CANCELLED"})
        assert current() == state, self.log(job)


@contextmanager
def slurm(nodes: int) -> Iterator[Slurm]:
    """A Slurm with nodes m0, m1, ... of one CPU and one GPU that does not exist."""
    with ssh_hosts.network() as network:
        folder = network.folder / "slurm"
        ips = {f"m{number}": f"{network.prefix}.{11 + number}" for number in range(nodes)}
        for name in ("state", *ips):
            (folder / name).mkdir(parents=True)
        config = CONFIG.format(controller=ips["m0"], folder=folder)
        config += "".join(NODE.format(name=name, ip=ip) for name, ip in ips.items())
        (folder / "slurm.conf").write_text(config)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        # The hosts have no cgroups for it to find.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        repository = network.folder / "repository"
        for name in SHARED:
            shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = f"{Path(sys.executable).parent}:{ssh_hosts.SYSTEM_PATH}"
        environment = {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        for name, ip in ips.items():
            network.boot(name, ip, environment=environment)
        made = Slurm(network, repository)
        made.run("slurmctld > /dev/null 2>&1")
        for number, name in enumerate(ips):
            # Its jobs inherit the one core, as on a real machine of one.
            core = number % (os.cpu_count() or 1)
            made.run(f"taskset --cpu-list {core} slurmd -N {name} > /dev/null 2>&1", name)
        wait_until(lambda: made.run("sinfo --noheader --format=%D-%T").strip() == f"{nodes}-idle", seconds=60)
        yield made
