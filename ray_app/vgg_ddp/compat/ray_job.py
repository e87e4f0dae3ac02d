"""Keep the driver's folders out of the workers' module search path, for which Ray has no public API.

Tested with Ray 2.60.0.
"""

from collections.abc import Iterable

from ray.job_config import JobConfig

from vgg_ddp.compat.fallback import log_fallback

PATHS = "_py_driver_sys_path"


class FixedList(list[str]):
    """A list that stays as it is."""

    def extend(self, _: Iterable[str]) -> None:
        return


def job_config() -> JobConfig:
    """Ray's settings of a job whose workers do not search the script's folder and the working directory for modules.

    Ray puts both first. The workers of a command that is started in another checkout would run that checkout's code,
    and a file like numpy.py there would replace the package of that name. No longer needed once Ray has a setting.
    """
    config = JobConfig()
    if not isinstance(getattr(config, PATHS, None), list):
        log_fallback(f"ray.job_config.JobConfig.{PATHS}", "workers also search the working directory for modules")
        return config
    setattr(config, PATHS, FixedList())
    return config
