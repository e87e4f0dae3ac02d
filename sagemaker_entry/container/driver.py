"""Wait until all hosts have joined Ray with all their GPUs, then become `python ray_app/main.py`.

python -m sagemaker_entry.container.driver '{"address": ..., "hosts": [...], ...}' FLAGS OF MAIN.PY
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from sagemaker_entry.container.hosts import Host, find_missing
from sagemaker_entry.container.outcome import HOSTS_MISSING
from sagemaker_entry.contract import COORDINATOR_GROUP

MAIN = Path(__file__).resolve().parents[2] / "ray_app" / "main.py"


def wait_for_head(address: str, deadline: float) -> None:
    """Wait until something listens on HOST:PORT, or until the deadline (wall clock)."""
    host, _, port = address.rpartition(":")
    while time.time() < deadline:
        try:
            socket.create_connection((host, int(port)), 2).close()
            return
        except OSError:
            time.sleep(0.2)


def wait_for_hosts(address: str, hosts: list[tuple[Host, str]], head: Host, deadline: float) -> tuple[list[str], int]:
    """Wait for all hosts; return what is still missing at the deadline, and the number of GPUs."""
    import ray

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    # ray.init() installed a handler that exits with code 15.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        gpus = {node["NodeManagerAddress"]: node["Resources"].get("GPU", 0.0) for node in alive}
        missing = find_missing(hosts, gpus, head)
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
    missing, gpus = wait_for_hosts(settings["address"], hosts, Host(*settings["head"]), deadline)
    if missing:
        print(f"error: after {settings['join_seconds']:.0f} s, {'; '.join(missing)}", file=sys.stderr)
        sys.exit(HOSTS_MISSING)
    print(f"All {len(hosts)} hosts joined, with {gpus} GPUs", flush=True)
    if not any(flag.startswith(("--num-workers", "--resume")) for flag in flags):
        training = [host for host, _ in hosts if len(hosts) == 1 or host.group != COORDINATOR_GROUP]
        flags.append(f"--num-workers={gpus or len(training)}")
    os.execv(sys.executable, [sys.executable, str(MAIN), f"--address={settings['address']}", *flags])


if __name__ == "__main__":
    main()
