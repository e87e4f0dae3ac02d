"""Hyperparameter tuning with the SDK's tuner: several jobs of the same program, best by test accuracy.

The tuning service starts an image's own entry point, not a command of ours. Images with SageMaker's training toolkit
find the script in the hyperparameter sagemaker_program, which the SDK sets, and run it; `launch.py` works both ways.
"""

import re
from typing import TYPE_CHECKING, Any

from channels import create_channel
from session import NotCompletedError
from settings import JobConfig
from waiting import submitting, watching

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer


def parameter_range(text: str) -> tuple[str, Any]:
    """NAME=LOW:HIGH or NAME=A,B,C as a hyperparameter's name and the SDK's range.

    Whole numbers stay whole. A range over a factor of ten or more is searched on a logarithmic scale.
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


def tune(config: JobConfig, trainer: "ModelTrainer", metrics: dict[str, str], objective: str) -> None:
    """Submit the search and, if asked to, wait for its end and name the best job."""
    from sagemaker.train.tuner import HyperparameterTuner

    tuner = HyperparameterTuner(
        trainer,
        objective_metric_name=objective,
        hyperparameter_ranges=dict(parameter_range(text) for text in config.tune),
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in metrics.items()],
        max_jobs=config.max_jobs,
        max_parallel_jobs=config.parallel_jobs,
        base_tuning_job_name=config.job_prefix[:15],
        tags=trainer.tags,
    )
    inputs = None
    if config.has_own_data:
        inputs = [create_channel(trainer, config)]
    with submitting():
        tuner.tune(inputs=inputs, wait=False)
    print(f"Tuning:    {tuner.latest_tuning_job.hyper_parameter_tuning_job_name}", flush=True)
    if config.wait:
        with watching():
            tuner.wait()
            search = tuner.latest_tuning_job.refresh()
        print(f"Status:    {search.hyper_parameter_tuning_job_status}")
        if search.best_training_job:
            print(f"Best job:  {search.best_training_job.training_job_name}", flush=True)
        if search.hyper_parameter_tuning_job_status != "Completed":
            raise NotCompletedError("the search ended before it was completed.")
        if not search.best_training_job:
            raise NotCompletedError("none of the search's jobs reported a test accuracy.")
