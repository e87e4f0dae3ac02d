"""Hyperparameter search with the SDK's tuner: several jobs of the same program, ranked by test accuracy.

The tuning service starts an image's own entry point, not a command:
https://github.com/aws/sagemaker-python-sdk/issues/5184. In images with SageMaker's training toolkit, that entry point
runs the script named by the hyperparameter sagemaker_program, which the SDK sets to launch.py.
"""

import re
from typing import TYPE_CHECKING, Any

from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.client.trainer import METRICS, OBJECTIVE

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner


def parameter_range(text: str) -> tuple[str, Any]:
    """Parse NAME=LOW:HIGH or NAME=A,B,C into a hyperparameter's name and the SDK's range.

    Integers stay integers. A range that spans a factor of ten or more is searched on a logarithmic scale.
    """
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter

    name, _, values = text.partition("=")
    name = name.replace("_", "-")
    if "," in values:
        return name, CategoricalParameter(values.split(","))
    low, high = values.split(":")
    is_logarithmic = float(low) > 0 and float(high) >= 10 * float(low)
    scaling = "Logarithmic" if is_logarithmic else "Linear"
    if re.fullmatch(r"\d+:\d+", values):
        return name, IntegerParameter(int(low), int(high), scaling_type=scaling)
    return name, ContinuousParameter(float(low), float(high), scaling_type=scaling)


def build_tuner(config: JobConfig, trainer: "ModelTrainer") -> "HyperparameterTuner":
    """The SDK's tuner for these settings."""
    from sagemaker.train.tuner import HyperparameterTuner

    return HyperparameterTuner(
        trainer,
        objective_metric_name=OBJECTIVE,
        hyperparameter_ranges=dict(parameter_range(text) for text in config.tune),
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in METRICS.items()],
        max_jobs=config.max_jobs,
        max_parallel_jobs=config.parallel_jobs,
        base_tuning_job_name=config.job_prefix[:15],
        tags=trainer.tags,
    )
