"""local.yaml with TLS on simulated machines reached by SSH: real sshd, real Ray, and runs on two of the machines."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from support import ssh_hosts
from support.command import MAIN, PATIENCE, ROOT, count_checkpoints, wait_until
from support.launcher import DOWN, RAY, SUBMIT, Laptop, request, status, watch_until_exit
from support.local_cluster import CERTIFICATES, alive, machines, turn_on_tls, up
from support.packets import CONTENT_OF_RAY, capture

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(ssh_hosts.missing_requirement()), reason=ssh_hosts.missing_requirement()),
]

MACHINES, WORKERS = 3, 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[ssh_hosts.Network, Laptop]]:
    """Machines after `ray up`, with TLS between them; test_aws_cluster.py has no TLS."""
    with machines(MACHINES) as (network, laptop):
        turn_on_tls(laptop)
        up(network, laptop)
        yield network, laptop


@pytest.fixture(autouse=True)
def no_job_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A job that a failed test leaves would keep the CPUs that later tests wait for."""
    yield
    if "cluster" in request.fixturenames:
        kill_drivers(request.getfixturevalue("cluster")[0])


def kill_drivers(network: ssh_hosts.Network) -> None:
    """Kill the jobs' main.py, which run on the head node."""
    for pid, command in network.hosts["m0"].processes().items():
        if "main.py --num-workers" in command:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_run_trains_on_two_machines_that_do_not_have_the_code_and_ray_encrypts_its_traffic(
    cluster: tuple[ssh_hosts.Network, Laptop], tiny_data: Path, tmp_path: Path
) -> None:
    network, laptop = cluster
    assert f"cannot access '{MAIN}'" in laptop.run("ray", "exec", laptop.cluster_file, f"ls {MAIN}").stdout
    # In /var/tmp, which the hosts share.
    storage = network.folder / "runs"
    storage.mkdir()
    flags = ["--num-workers", WORKERS, "--epochs", 1, "--batch-size", 24, "--precision", "fp32"]
    flags += ["--data", shutil.copytree(tiny_data, storage / "data"), "--storage-path", storage, "--run-name", "run"]
    log = tmp_path / "log"
    with capture(network.bridge, laptop.token, CONTENT_OF_RAY) as seen:
        process = laptop.start(SUBMIT, laptop.cluster_file, *flags, log=log)
        code, together = watch_until_exit(process, list(network.hosts.values()), PATIENCE)
    assert code == 0, log.read_text()
    # The gradients are not encrypted.
    assert seen.size_bytes > 100e6
    assert seen.lost == 0
    assert set(seen.counts.values()) == {0}, seen
    assert len(together) == WORKERS
    assert re.search(r"epoch 1/1 +loss ", log.read_text())
    assert (storage / "run" / "model.safetensors").exists()
    with laptop.dashboard() as url, request(f"{url}/api/train/v2/runs/v1", laptop.token) as response:
        (run,) = json.load(response)["train_runs"]
    assert (run["name"], run["status"]) == ("run", "FINISHED")


def test_submit_exits_with_the_exit_code_of_the_job(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    _, laptop = cluster
    result = laptop.run(SUBMIT, laptop.cluster_file, "--epochs", 0)
    assert result.returncode == 2, result.stdout
    assert "--epochs 0: expected a positive number." in result.stdout
    result = laptop.run(SUBMIT, laptop.cluster_file, "tune.py", "lr=0.2:0.1")
    assert result.returncode == 2, result.stdout
    assert "lr=0.2:0.1: expected LOW:HIGH with LOW below HIGH." in result.stdout
    result = laptop.run(SUBMIT, laptop.cluster_file, "predict.py")
    assert result.returncode == 2, result.stdout
    assert "predict.py: expected main.py or tune.py" in result.stdout


def test_submit_exits_with_128_plus_the_signal_that_killed_the_driver(
    cluster: tuple[ssh_hosts.Network, Laptop], tmp_path: Path
) -> None:
    network, laptop = cluster
    log = tmp_path / "log"
    flags = ["--num-workers", WORKERS, "--data", "sample", "--storage-path", network.folder, "--run-name", "killed"]
    process = laptop.start(SUBMIT, laptop.cluster_file, *flags, log=log)
    sample = "Data:      bundled CIFAR-10 sample: 5,000 training"
    wait_until(lambda: sample in log.read_text() or process.poll() is not None)
    kill_drivers(network)
    assert process.wait(PATIENCE) == 128 + signal.SIGKILL and sample in log.read_text(), log.read_text()


def test_storage_path_that_the_machines_do_not_share_is_rejected(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    network, laptop = cluster
    # Each host has its own /tmp.
    flags = ["--num-workers", WORKERS, "--data", "sample", "--storage-path", "/tmp/runs"]
    result = laptop.run(SUBMIT, laptop.cluster_file, *flags)
    assert result.returncode == 2, result.stdout
    blind = re.search(r"error: --storage-path /tmp/runs of the driver is not on (.+): several", result.stdout)
    assert blind and set(blind[1].split(", ")) <= {host.ip for host in network.hosts.values()}, result.stdout


def test_exec_and_attach_reach_the_head_node(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    network, laptop = cluster
    assert "m0" in laptop.exec("hostname").split()
    assert re.search(rf"\b{MACHINES}\.0 CPU|/{MACHINES}\.0 CPU", laptop.exec("ray status"))
    assert "MARK-m0" in laptop.attach("echo MARK-$(hostname)\nexit\n")
    assert network.hosts["m0"].ray_processes()


def test_dashboard_needs_the_tunnel_and_the_token(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    network, laptop = cluster
    with laptop.dashboard() as url:
        for path in ("/api/jobs/", "/nodes?view=summary"):
            assert status(url + path) == 401
            # Ray distinguishes a wrong token from a missing one.
            assert status(url + path, "0" * 64) in (401, 403)
            assert status(url + path, laptop.token) == 200
    with socket.socket() as direct:
        direct.settimeout(5)
        assert direct.connect_ex((network.hosts["m0"].ip, 8265)) != 0


def test_prometheus_on_the_head_node_scrapes_all_nodes(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    if not shutil.which("prometheus"):
        pytest.skip("needs prometheus (Debian package prometheus)")
    network, laptop = cluster
    copied = laptop.run(RAY, "rsync-up", laptop.cluster_file, "cluster/observability/", "~/observability/")
    assert copied.returncode == 0, copied.stdout
    start = "setsid ~/observability/prometheus.sh > ~/prometheus.log 2>&1 < /dev/null &"
    laptop.exec(f"SCRAPE_INTERVAL=1s {start}")
    with laptop.dashboard(remote_port=9090) as url:

        def up() -> set[str]:
            with request(f"{url}/api/v1/targets") as response:
                targets = json.load(response)["data"]["activeTargets"]
            return {target["labels"]["instance"].split(":")[0] for target in targets if target["health"] == "up"}

        wait_until(lambda: up() == {host.ip for host in network.hosts.values()})
        with request(f"{url}/api/v1/rules") as response:
            assert json.load(response)["data"]["groups"]
    with socket.socket() as direct:
        assert direct.connect_ex((network.hosts["m0"].ip, 9090)) != 0


def test_secrets_are_readable_only_by_their_owner_on_every_machine(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    network, laptop = cluster
    homes = [host.folder / "home" for host in network.hosts.values()]
    files = [home / ".ray" / name for home in homes for name in ("auth_token", "tls/ca.key", "node-tls/node.key")]
    for file in [laptop.home / ".ray" / "tls" / "ca.key", *files]:
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0
    assert {file.read_text() for file in files if file.name == "auth_token"} == {laptop.token}


def test_cluster_cannot_be_joined_without_the_token(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    _, laptop = cluster
    join = "RAY_AUTH_MODE=disabled python -c 'import ray; ray.init(address=\"auto\")' 2>&1 || echo REFUSED"
    answer = laptop.exec(join)
    assert "REFUSED" in answer
    assert re.search("InvalidAuthToken|Unauthenticated|AuthenticationError", answer), answer


def test_only_a_node_with_a_certificate_of_the_same_authority_can_join(
    cluster: tuple[ssh_hosts.Network, Laptop],
) -> None:
    network, laptop = cluster
    stranger = network.boot("stranger", f"{network.prefix}.50")
    home, own = stranger.folder / "home", laptop.home / ".ray"
    shutil.copytree(own, home / ".ray", ignore=shutil.ignore_patterns("tls"))
    shutil.copy(CERTIFICATES, home)
    key = ("-i", network.private_key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")

    def join(prepare: str, seconds: int) -> int:
        start = f"PATH=~/vgg-ddp/bin:$PATH timeout {seconds} ray start --address={network.hosts['m0'].ip}:6379"
        command = f"{prepare} && . ~/.bashrc && RAY_AUTH_MODE=token {start}"
        return subprocess.run(["ssh", "-n", *key, f"root@{stranger.ip}", command], timeout=PATIENCE).returncode

    try:
        assert join("bash certificates.sh && bash certificates.sh node", seconds=10) == 124
        assert alive(laptop) == MACHINES
        shutil.copytree(own / "tls", home / ".ray" / "tls", dirs_exist_ok=True)
        assert join("bash certificates.sh node", seconds=PATIENCE) == 0
        assert alive(laptop) == MACHINES + 1
    finally:
        network.power_off("stranger")


def test_job_outlives_ctrl_c_and_a_lost_network_until_it_is_stopped(
    cluster: tuple[ssh_hosts.Network, Laptop], tmp_path: Path
) -> None:
    network, laptop = cluster
    head, storage = network.hosts["m0"], network.folder / "stopped"
    storage.mkdir()
    # Steps of seconds: saving may take longer than the 3 s that Ray itself waits before it kills a job. Even a busy
    # machine finishes one in the 22 s that the driver waits.
    flags = ["--num-workers", WORKERS, "--data", "sample", "--epochs", 50, "--batch-size", 600, "--precision", "fp32"]
    flags += ["--storage-path", storage, "--run-name", "run"]
    process = laptop.start(SUBMIT, laptop.cluster_file, *flags, log=tmp_path / "submitted")
    wait_until(lambda: "Workers: " in (tmp_path / "submitted").read_text() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130, (tmp_path / "submitted").read_text()
    commands = dict(re.findall(r"^To (see|stop) .*?: (.+)$", (tmp_path / "submitted").read_text(), re.MULTILINE))

    again = laptop.run(RAY, "up", "--yes", "--no-config-cache", laptop.cluster_file)
    assert again.returncode == 0, again.stdout
    assert "NOTE: a job is running, so Ray is not restarted." in again.stdout

    log = tmp_path / "attached"
    attached = laptop.start(*shlex.split(commands["see"]), log=log)
    wait_until(lambda: "Started: " in log.read_text() or attached.poll() is not None)
    # Only the laptop loses its connection to the head node.
    head.shell(f"ip route add blackhole {network.gateway}")
    wait_until(lambda: "lost the connection" in log.read_text() or attached.poll() is not None)
    head.shell(f"ip route delete blackhole {network.gateway}")
    stopped = laptop.run(*shlex.split(commands["stop"]))
    assert stopped.returncode == 0, stopped.stdout
    assert re.search(r"^Stopped after step \d+\.$", stopped.stdout, re.MULTILINE), stopped.stdout
    assert count_checkpoints(storage / "run")
    assert attached.wait(60) == 128 + signal.SIGTERM, log.read_text()
    starts = ("Data: ", "Run: ", "Workers: ", "Started: ", "Stopped after step ")
    assert [log.read_text().count(f"\n{start}") for start in starts] == [1] * len(starts), log.read_text()


def test_unknown_job_is_reported_in_one_line(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    _, laptop = cluster
    for flag in ("--attach", "--stop"):
        result = laptop.run(SUBMIT, laptop.cluster_file, flag, "nothing")
        assert result.returncode == 2, result.stdout
        assert re.fullmatch(rf"submit.sh: error: {flag} nothing: the cluster has no such job; .*\n", result.stdout)


def test_machine_with_another_host_key_than_before_is_refused_in_one_line(
    cluster: tuple[ssh_hosts.Network, Laptop], tmp_path: Path
) -> None:
    network, laptop = cluster
    head, known = network.hosts["m0"], laptop.home / ".ssh" / "vgg-ddp_known_hosts"
    reason = (
        f"{head.ip} has another SSH host key than in {known}: .* run ssh-keygen -R {head.ip} -f {known}; if not, .*\n"
    )
    only_head = tmp_path / "head.yaml"
    config = yaml.safe_load(laptop.cluster_file.read_text())
    only_head.write_text(yaml.safe_dump(config | {"provider": {"type": "local", "head_ip": head.ip}}))
    connect = (ROOT / "cluster" / "ssh" / "ssh", "-n", "-i", network.private_key, f"root@{head.ip}", "true")
    assert laptop.run(*connect).returncode == 0
    head.change_host_key()
    result = laptop.run(SUBMIT, laptop.cluster_file, "--attach", "nothing")
    assert result.returncode == 1
    assert re.fullmatch(f"submit.sh: error: {reason}", result.stdout), result.stdout
    result = laptop.run(sys.executable, ROOT / "cluster" / "machines.py", "stop-ray", only_head)
    assert result.returncode == 1
    error = f"down.sh: error: Ray may still be running on {head.ip}: {reason}"
    assert re.fullmatch(error, result.stdout), result.stdout
    assert head.ray_processes()
    assert laptop.run("ssh-keygen", "-R", head.ip, "-f", known).returncode == 0


def test_down_sh_stops_ray_on_every_machine(cluster: tuple[ssh_hosts.Network, Laptop]) -> None:
    network, laptop = cluster
    assert all(host.ray_processes() for host in network.hosts.values())
    result = laptop.run(DOWN, laptop.cluster_file)
    assert result.returncode == 0, result.stdout
    assert {host.name: host.ray_processes() for host in network.hosts.values()} == {"m0": [], "m1": [], "m2": []}


@pytest.mark.parametrize("script", [SUBMIT, DOWN], ids=["submit.sh", "down.sh"])
def test_missing_cluster_file_is_reported_in_one_line(script: str, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tmp_path / "none.yaml")
    for arguments, message in (((), "expected a cluster file"), ((laptop.cluster_file,), "no such cluster file")):
        result = laptop.run(script, *arguments)
        assert result.returncode == 2
        (line,) = result.stdout.splitlines()
        assert message in line


def test_submit_without_a_token_explains_how_to_create_one(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path, tmp_path / "cluster.yaml")
    laptop.cluster_file.write_text("cluster_name: test\n")
    result = laptop.run(SUBMIT, laptop.cluster_file)
    assert result.returncode == 2
    (line,) = result.stdout.splitlines()
    assert "ray get-auth-token --generate" in line
