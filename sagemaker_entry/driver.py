"""Wait until the Ray nodes of all hosts are there with their GPUs; then become `python ray_app/main.py`.

python sagemaker_entry/driver.py '{"address": ..., "hosts": [...], ...}' FLAGS OF MAIN.PY
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from hosts import COORDINATOR_GROUP, Host, complaints
from outcome import HOSTS_MISSING

MAIN = Path(__file__).resolve().parent.parent / "ray_app" / "main.py"


def wait_for_head(address: str, deadline: float) -> None:
    """Wait until something listens at HOST:PORT, or the deadline of the wall clock is over."""
    host, _, port = address.rpartition(":")
    while time.time() < deadline:
        try:
            socket.create_connection((host, int(port)), 2).close()
            return
        except OSError:
            time.sleep(0.2)


def gather(address: str, hosts: list[tuple[Host, str]], head: Host, deadline: float) -> tuple[list[str], int]:
    """Wait for all hosts: what is still missing at the deadline, and how many GPUs there are."""
    import ray

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    # Ray's own handler would exit with 15.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        gpus = {node["NodeManagerAddress"]: node["Resources"].get("GPU", 0.0) for node in alive}
        missing = complaints(hosts, gpus, head)
        if not missing or time.time() > deadline:
            ray.shutdown()
            return missing, int(sum(gpus.values()))
        time.sleep(0.5)


def main() -> NoReturn:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    flags = sys.argv[2:]
    hosts = [(Host(*fields), address) for fields, address in settings["hosts"]]
    deadline = time.time() + settings["join_seconds"]
    wait_for_head(settings["address"], deadline)
    missing, gpus = gather(settings["address"], hosts, Host(*settings["head"]), deadline)
    if missing:
        print(f"error: after {settings['join_seconds']:.0f} s, {'; '.join(missing)}", file=sys.stderr)
        sys.exit(HOSTS_MISSING)
    print(f"All of {len(hosts)} hosts are there, with {gpus} GPUs", flush=True)
    if not any(flag.startswith(("--num-workers", "--resume")) for flag in flags):
        training = [host for host, _ in hosts if len(hosts) == 1 or host.group != COORDINATOR_GROUP]
        flags.append(f"--num-workers={gpus or len(training)}")
    os.execv(sys.executable, [sys.executable, str(MAIN), f"--address={settings['address']}", *flags])


if __name__ == "__main__":
    main()
