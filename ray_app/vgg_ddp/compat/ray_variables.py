"""Environment variables that Ray 2.60.0 reads but does not document; Ray ignores variables that it does not know.

All of them could go if Ray had documented settings. Ray reads them when it is imported and started, so this module
must not import Ray.
"""

# Makes Ray's processes listen only on loopback, as on macOS; by default, they also listen on the machine's address.
# If ignored: the ports of a run can be reached from the network; `cluster.connect` logs a warning.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# Disables the watcher for nodes that are about to be preempted, which a single machine does not need.
# If ignored: runs start a little later.
NO_PREEMPTION_WATCHER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

# The polling interval of that watcher, in seconds; the default of 5 s leaves little time for a checkpoint.
# If ignored: workers are notified up to 5 s later, and may lose the steps since their last checkpoint.
FREQUENT_PREEMPTION_CHECKS = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}

# Keeps idle processes for ten minutes; by default, Ray ends them after a second, but decoding processes wait longer
# between two row groups.
# If ignored: Ray keeps starting new processes, which takes seconds of CPU time each, and streaming is slower.
KEEP_IDLE_PROCESSES = {"RAY_idle_worker_killing_time_threshold_ms": "600000"}

# Names a function that a worker process calls when it has started. Ray documents it as `worker_process_setup_hook` of a
# job's runtime environment; in that of an actor, it only has this name.
# If ignored: spare processes of workers import torch late, and training continues some seconds later after a failure.
WORKER_SETUP = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "vgg_ddp.compat.ray_spares.load"}

# By default, a driver that `uv run` started makes Ray copy the working directory, and start each worker by `uv run` in
# the copy, where the virtual environment is missing. The workers use the driver's environment without it.
# If ignored: under `uv run`, the workers never start.
NO_UV_RUN = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
