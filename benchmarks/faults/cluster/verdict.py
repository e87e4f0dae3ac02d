"""What is wrong with the end of a disturbed command, and with the steps that it resumed from."""

import re
import signal
from collections.abc import Sequence

from benchmarks.faults.cluster.kinds import EXIT_CODES, SAVES, Plan

# The last two are Ray's, which ends the process of the driver when the head dies.
REASONS = ("error: ", "--resume ", "nothing to resume", "Failed to connect to GCS", "the local Raylet is dead")
# Lines at the end of the output that should contain the reason. Ray's report of a dead raylet does not count: it ends
# with the raylet's last lines, and may come late.
LAST_LINES, RAYLET_REPORT = 15, ("(raylet) ", "    [")
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
RESUMED, ALREADY_FINISHED = r"Resumed at step (\d+)", "already finished"
RESTARTED, FINISHED = r"restart \d+ of at most", "\nFinished "


def problems_of_end(plan: Plan, code: int, output: str, is_undisturbed: bool) -> list[str]:
    """Problems of the exit code of a disturbed command, or of the end of its output.

    `is_undisturbed` says that no fault hit anything.
    """
    expected = EXIT_CODES.get(str(plan))
    allowed = [expected]
    if expected and plan.phase == "start":
        # The command had not yet handled its signals.
        allowed.append(128 - expected)
    if plan.phase == "end":
        # The run was finished.
        allowed.append(0)
    if is_undisturbed:
        return [f"the command ended with {code}, although no fault hit it"] if code and not plan.may_kill_driver else []
    if expected and code not in allowed:
        return [f"the command ended with {code} instead of {expected}"]
    may_be_silent = (code in KILLED and plan.may_kill_driver) or (code < 0 and code in allowed)
    if not code or may_be_silent:
        return []
    lines = [line for line in output.splitlines() if not line.startswith(RAYLET_REPORT)]
    if any(reason in line for line in lines[-LAST_LINES:] for reason in REASONS):
        return []
    return [f"the command ended with {code} without saying why"]


def resumed_steps(outputs: Sequence[str]) -> list[int]:
    """The steps at which workers resumed: in the disturbed command after the fault, and in the one that resumed.

    0 if they started from scratch. A restart from scratch that was followed by another restart is not noticed. Ray
    mixes the output of several hosts, so the order of its lines does not count.
    """
    steps = [int(step) for output in outputs for step in re.findall(RESUMED, output)]
    if len(outputs) > 1 and not re.search(RESUMED, outputs[-1]) and ALREADY_FINISHED not in outputs[-1]:
        steps.append(0)
    for output in outputs:
        if re.search(RESTARTED, output) and FINISHED in output and not re.search(RESUMED, output):
            steps.append(0)
    return steps


def problems_of_steps(plan: Plan, resumed: Sequence[int], complete: Sequence[int], reached: int) -> list[str]:
    """A problem if any resumption repeated more than the steps since the newest checkpoint.

    `complete` are the steps of the checkpoints that were complete when the fault came, in order; `reached` is the step
    of the run at that time.
    """
    kept = complete[:-1] if plan.may_lose_checkpoint else complete
    first = min(resumed)
    if kept and first < kept[-1]:
        return [f"resumed at step {first}, although step {kept[-1]} was complete"]
    if str(plan) in SAVES and first < reached:
        return [f"resumed at step {first}, although step {reached} was reached before the signal"]
    return []
