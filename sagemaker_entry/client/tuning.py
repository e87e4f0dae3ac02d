"""Hyperparameter search with the SDK's tuner: several jobs of the same program, ranked by validation accuracy.

The tuning service starts an image's own entry point, not a command:
https://github.com/aws/sagemaker-python-sdk/issues/5184. In images with SageMaker's training toolkit, that entry point
runs the script named by the hyperparameter sagemaker_program, which the SDK sets to launch.py.
"""

import secrets
from typing import TYPE_CHECKING, Any

from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.client.trainer import METRICS, OBJECTIVE
from vgg_ddp.search_space import Choice, Parameter, format_value

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner


def parameter_range(parameter: Parameter) -> Any:
    """The SDK's range for a tuned setting."""
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter

    if isinstance(parameter, Choice):
        return CategoricalParameter(list(map(format_value, parameter.values)))
    scaling = "Logarithmic" if parameter.is_logarithmic else "Linear"
    kind = IntegerParameter if parameter.is_integer else ContinuousParameter
    return kind(parameter.low, parameter.high, scaling_type=scaling)


def build_tuner(config: JobConfig, trainer: "ModelTrainer") -> "HyperparameterTuner":
    """The SDK's tuner for these settings."""
    from sagemaker.train.tuner import HyperparameterTuner

    # At most 32 characters, to which the SDK adds 12 for the date and the minute.
    name = f"{config.job_prefix[:13]}-{secrets.token_hex(3)}"
    # The tuner uses the trainer's name as a prefix of keys only, once with the session's prefix and once without.
    session = trainer.sagemaker_session
    trainer.base_job_name = "/".join(filter(None, (session.default_bucket_prefix, config.job_prefix, name)))
    session.default_bucket_prefix = None
    return HyperparameterTuner(
        trainer,
        objective_metric_name=OBJECTIVE,
        hyperparameter_ranges={
            parameter.name.replace("_", "-"): parameter_range(parameter) for parameter in config.search_space()
        },
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in METRICS.items()],
        max_jobs=config.max_jobs,
        max_parallel_jobs=config.parallel_jobs,
        base_tuning_job_name=name,
        tags=trainer.tags,
    )
