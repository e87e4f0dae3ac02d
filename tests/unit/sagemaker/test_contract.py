"""Hyperparameters on their way through the SDK's own script into the container."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sagemaker.train import container_drivers

from sagemaker_entry.client.trainer import LOG_LEVEL
from sagemaker_entry.contract import decode, encode

# Runs the script that writes `export SM_HP_NAME='value'` for every hyperparameter.
WRITE_ENVIRONMENT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import environment
host = {"current_host": "algo-1", "hosts": ["algo-1"], "current_instance_type": "x", "network_interface_name": "eth0"}
environment.set_env(host, {}, json.loads(sys.argv[2]), sys.argv[3])
"""
VALUES = ["plain", "it's", "'; touch /tmp/x; '", "two\nlines", 'say "hi"', "0.1", "a b", "\\n"]


def write_environment(file: Path, hyperparameters: dict[str, str], **variables: str) -> str:
    """Write the environment of a job with these variables as the SDK's script does; return what the script prints."""
    scripts = Path(next(iter(container_drivers.__path__))) / "scripts"
    command = [sys.executable, "-c", WRITE_ENVIRONMENT, str(scripts), json.dumps(hyperparameters), str(file)]
    environment = os.environ | {"TRAINING_JOB_NAME": "job"} | variables
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return result.stdout + result.stderr


def run_in_bash(hyperparameters: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Write the environment with the SDK's script, and let bash run it."""
    file = folder / "environment.sh"
    write_environment(file, hyperparameters)
    return subprocess.run(["bash", "-e", str(file)], cwd=folder, capture_output=True, text=True, timeout=60)


def test_encoded_values_pass_the_sdks_script(tmp_path: Path) -> None:
    encoded = {f"value-{index}": encode(value) for index, value in enumerate(VALUES)}
    assert all(value.isprintable() for value in encoded.values())
    result = run_in_bash(encoded, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_bash_runs_what_follows_an_unencoded_apostrophe(tmp_path: Path) -> None:
    """The reason for `encode`. If this fails, the SDK quotes values, and `encode` is unnecessary."""
    run_in_bash({"value": "'; touch was-here; '"}, tmp_path)
    assert (tmp_path / "was-here").exists()


def test_variables_of_the_job_pass_the_sdks_script_unchanged_and_unprinted(tmp_path: Path) -> None:
    file, value = tmp_path / "environment.sh", 'it\'s "$HOME"\n`id`'
    assert "DB_PWD" in write_environment(file, {}, DB_PWD=value)
    assert write_environment(file, {}, DB_PWD=value, SM_LOG_LEVEL=LOG_LEVEL) == ""
    command = ["bash", "-e", "-c", f'source {file}; printf %s "$DB_PWD"']
    result = subprocess.run(command, env=os.environ | {"DB_PWD": value}, capture_output=True, text=True, timeout=60)
    assert result.stdout == value


@pytest.mark.parametrize("value", VALUES)
def test_decoding_restores_the_value(value: str) -> None:
    assert decode(encode(value)) == value


def test_quotes_around_a_tuners_choice_are_removed() -> None:
    assert decode('"bf16"') == "bf16"
    assert decode("64") == "64"
