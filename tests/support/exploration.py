"""How far the models of the protocols explore: a little by default, the same each time; more with PROTOCOL_EXAMPLES."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("PROTOCOL_EXAMPLES")
# Of the moments of a scenario, each or every other is tried.
STEP = 1 if EXAMPLES else 2


def exploration(examples: int, steps: int) -> settings:
    """The settings of a state machine: by default, this number of examples; each has at most this number of steps."""
    return settings(
        max_examples=int(EXAMPLES or examples),
        stateful_step_count=steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
