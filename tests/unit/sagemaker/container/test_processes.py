import os
import signal
import subprocess
import sys
from pathlib import Path

from support.command import ROOT

# Runs in its own process, since a process remains a subreaper until it exits.
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from sagemaker_entry.container.outcome import Redactor
from sagemaker_entry.container.processes import Processes, descendants
processes = Processes(Redactor({{"TOKEN": "top-secret"}}))
command = ["bash", "-c", {shell!r}]
child = processes.start(command, dict(os.environ))
while child.code is None:
    time.sleep(0.05)
    processes.reap()
time.sleep(0.2)
processes.reap()
print("code", child.code, "left", sorted(descendants().values()))
print("killed", processes.end_all({seconds}))
print("left", sorted(descendants().values()), "lines", child.last_lines())
"""


def run(shell: str, seconds: float = 1) -> str:
    """Output of SCRIPT, which allows this long for remaining processes to exit after SIGTERM."""
    script = SCRIPT.format(root=str(ROOT), shell=shell, seconds=seconds)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_orphans_are_reaped_and_ended() -> None:
    output = run("(sleep 0.1 & exit 0); setsid sleep 300 > /dev/null & exit 3", seconds=30)
    assert "code 3 left ['sleep']" in output
    assert "killed []" in output
    assert "left [] lines" in output


def test_process_that_ignores_sigterm_is_killed_and_named() -> None:
    output = run("trap '' TERM; (trap '' TERM; exec setsid sleep 300 > /dev/null) & sleep 0.3; exit 0")
    assert "killed ['sleep']" in output
    assert "left [] lines" in output


def test_exit_code_of_a_signal_is_negative_and_secrets_are_redacted() -> None:
    output = run("echo the top-secret token; kill -KILL $$")
    assert f"code {-signal.SIGKILL} " in output
    assert "the ****** token" in output.splitlines()


def test_process_name_with_parentheses_is_parsed(tmp_path: Path) -> None:
    from sagemaker_entry.container.processes import descendants

    program = tmp_path / "a) (b"
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([str(program), "60"]) as process:
        assert descendants()[process.pid] == "a) (b"
        process.kill()
