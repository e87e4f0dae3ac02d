"""Simulated machines: namespaces on one Linux machine, each with its own address, processes, /tmp, home, and sshd.

They share the file system, except /tmp and the home. The project's code is hidden from them, so whatever they run must
arrive over the network. Their `shutdown` only records its arguments. Needs root, iproute2, openssh-server, and rsync.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.cluster.hosts import command_lines, connect
from support.command import CLUSTER_SETTINGS, ROOT, wait_until

COMMANDS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
HIDDEN = ("ray_app", "cluster")
# Everything is installed; checking the packages that those of the setup need takes pip seconds on each host.
NO_DEPENDENCIES = {"PIP_NO_DEPS": "1"}
IMDS_ADDRESS = "169.254.169.254"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Runs as PID 1 of a host; bash reaps the orphans of Ray's daemons.
INIT = """set -eu
hostname {name}
mount --make-rprivate /
ip link set lo up
ip address add {imds_address}/32 dev lo
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/online /sys/devices/system/cpu/online
mount --bind {folder}/ssh /etc/ssh
for hidden in {hidden}; do mount --bind {folder}/empty "$hidden"; done
case {prefix} in /tmp/*) mkdir -p {folder}{prefix}; mount --rbind {prefix} {folder}{prefix};; esac
mount --rbind {folder}/tmp /tmp
mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
if [ -e /usr/sbin/shutdown ]; then mount --bind {folder}/bin/shutdown /usr/sbin/shutdown; fi
cd /
if [ -d {folder}/imds ]; then {python} {folder}/imds.py {imds_address} 80 {folder}/imds & fi
if [ -f {folder}/user-data ]; then {{ PATH={folder}/bin:$PATH {folder}/user-data || true; touch {folder}/booted; }} & fi
/usr/sbin/sshd -D -e -f {folder}/sshd_config &
while :; do wait || true; sleep 1; done
"""

# By name, in each host's own folder of commands.
COMMANDS_OF_HOSTS = {
    "shutdown": '#!/bin/sh\necho "$@" >> {folder}/shutdown.log\n',
    "sudo": '#!/bin/sh\nexec "$@"\n',
    # Like the real one, `status` ends with 2 if there were warnings.
    "cloud-init": """#!/bin/sh
case $1 in
  status) until [ -e {folder}/booted ]; do sleep 0.1; done; exit 2 ;;
  *) echo "$@" >> {folder}/cloud-init.log ;;
esac
""",
}

SSHD_CONFIG = """ListenAddress {ip}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
UseDNS no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxSessions 50
MaxStartups 50:30:100
Subsystem sftp internal-sftp
"""


def missing_requirement() -> str:
    """What this machine lacks to simulate hosts; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    path = os.environ.get("PATH", "") + ":" + SYSTEM_PATH
    if missing := [package for command, package in COMMANDS.items() if not shutil.which(command, path=path)]:
        return f"needs {', '.join(missing)} for hosts in network namespaces"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "needs permission to create namespaces"


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """A running host; its files are in `folder`."""

    name: str
    ip: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def namespace(self) -> str:
        return f"vgg-{self.folder.parent.name}-{self.name}"

    def processes(self) -> dict[int, str]:
        """Command lines of its processes, by process ID as seen from this machine."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return command_lines(map(int, listed.stdout.split()))

    def ray_processes(self) -> list[str]:
        return [command for command in self.processes().values() if "raylet" in command or "gcs_server" in command]

    def shutdowns(self) -> list[str]:
        """The arguments of each `shutdown` so far."""
        log = self.folder / "shutdown.log"
        return log.read_text().splitlines() if log.exists() else []

    def shell(self, command: str) -> str:
        """Run a command as root in the host's network; return its output."""
        full = ["ip", "netns", "exec", self.namespace, "sh", "-c", command]
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout

    def change_host_key(self) -> None:
        """Give its sshd another key, and end all connections."""
        key = self.folder / "host_key"
        key.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        for pid, command in self.processes().items():
            if "sshd" in command:
                # The process that listens then reads its files again.
                os.kill(pid, signal.SIGHUP if " -D " in command else signal.SIGKILL)
        wait_until(lambda: _answers(self.ip), seconds=30)

    def power_off(self) -> None:
        """Kill everything on it immediately, as when EC2 terminates an instance."""
        # PID 1 is killed together with its parent, and the kernel then kills all processes of the namespace.
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self.processes(), seconds=20)
        _ip(f"netns delete {self.namespace}")


@dataclass
class Network:
    """A bridge with its hosts; this machine has the address `gateway`."""

    folder: Path
    prefix: str
    public_key: str
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"

    @property
    def private_key(self) -> Path:
        return self.folder / "key"

    @property
    def bridge(self) -> str:
        return f"br{self.folder.name}"

    def boot(
        self,
        name: str,
        ip: str,
        public_key: str | None = None,
        environment: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        user_data: str = "",
        cpus: int = 1,
    ) -> Host:
        """Start a host and wait for its sshd.

        `public_key` can log in as root; by default, the network's own key. `environment` is set in every login. With
        `metadata`, content by path, the host has an instance metadata service. `user_data` is a script to run.
        """
        folder = self.folder / name
        if user_data:
            folder.mkdir(parents=True)
            (folder / "user-data").write_text(user_data)
            (folder / "user-data").chmod(0o755)
        _write_files(folder, name, ip, public_key or self.public_key, environment or {}, metadata, cpus)
        command = ["ip", "netns", "exec", f"vgg-{self.folder.name}-{name}", "unshare", "--pid", "--fork"]
        command += ["--kill-child", "--mount", "--mount-proc", "--uts", "--ipc", "bash", str(folder / "init.sh")]
        link = f"v{secrets.token_hex(5)}"
        namespace = f"vgg-{self.folder.name}-{name}"
        _ip(f"netns add {namespace}")
        connect(namespace, link, self.bridge, ip)
        _ip(f"-n {namespace} route add default via {self.gateway}")
        with (folder / "init.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": SYSTEM_PATH, "HOME": str(folder / "home")},
            )
        self.hosts[name] = host = Host(name, ip, folder, process)
        wait_until(lambda: _answers(ip) or process.poll() is not None, seconds=30)
        assert process.poll() is None, (folder / "init.log").read_text()
        return host

    def power_off(self, name: str) -> None:
        self.hosts.pop(name).power_off()


def _write_files(
    folder: Path,
    name: str,
    ip: str,
    public_key: str,
    environment: Mapping[str, str],
    metadata: Mapping[str, str] | None,
    cpus: int,
) -> None:
    home = folder / "home"
    for path in (home, folder / "tmp", folder / "empty", folder / "bin", folder / "ssh"):
        path.mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    for command, script in COMMANDS_OF_HOSTS.items():
        (folder / "bin" / command).write_text(script.format(folder=folder))
        (folder / "bin" / command).chmod(0o755)
    exports = {"PATH": f"{folder}/bin:{SYSTEM_PATH}", **CLUSTER_SETTINGS, **NO_DEPENDENCIES, **environment}
    profile = "".join(f"export {key}='{value}'\n" for key, value in exports.items())
    (home / ".bashrc").write_text(profile)
    (home / ".profile").write_text(profile)
    # Put ours where the cluster's setup creates a virtual environment, so that nothing needs to be installed.
    (home / "vgg-ddp").symlink_to(sys.prefix)
    for path, content in (metadata or {}).items():
        (folder / "imds" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "imds" / path).write_text(content)
    (folder / "online").write_text("0\n" if cpus == 1 else f"0-{cpus - 1}\n")
    # Every address of the network has a name, as on EC2: torch looks up the names of its peers, in both notations, and
    # there is no name server here.
    known = {f"{ip.rpartition('.')[0]}.{number}": f"ip-{number}" for number in range(1, 255)}
    known |= {ip: name, IMDS_ADDRESS: "instance-data"}
    lines = [f"{prefix}{address} {known[address]}\n" for address in known for prefix in ("", "::ffff:")]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    (folder / "passwd").write_text(Path("/etc/passwd").read_text().replace(":/root:", f":{home}:", 1))
    (folder / "authorized_keys").write_text(public_key)
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(ip=ip, folder=folder))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
    hidden = " ".join(str(ROOT / part) for part in HIDDEN)
    values = {"name": name, "folder": folder, "hidden": hidden, "prefix": sys.prefix, "python": sys.executable}
    # The checkout may be in /tmp, which is private on each host.
    shutil.copy(Path(__file__).with_name("imds.py"), folder)
    script = INIT.format(imds_address=IMDS_ADDRESS, **values)
    (folder / "init.sh").write_text(script)


def _answers(ip: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ip, 22)) == 0


@contextmanager
def network() -> Iterator[Network]:
    """A network without hosts; on exit, all hosts are powered off."""
    # Not in /tmp, which is private on each host.
    folder = Path(tempfile.mkdtemp(prefix="vgg", dir="/var/tmp"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
    made = Network(folder, prefix, (folder / "key.pub").read_text())
    _ip(f"link add {made.bridge} type bridge")
    try:
        _ip(f"address add {made.gateway}/24 dev {made.bridge}")
        _ip(f"link set {made.bridge} up")
        yield made
    finally:
        for name in list(made.hosts):
            made.power_off(name)
        _ip(f"link delete {made.bridge}")
        # All mounts were in the hosts' own namespaces, which no longer exist.
        shutil.rmtree(folder)
