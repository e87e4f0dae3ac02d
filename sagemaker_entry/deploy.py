"""Serve a trained model: python sagemaker_entry/deploy.py --role ARN --job NAME --endpoint NAME ...

The container is SageMaker's own PyTorch inference image. The model archive contains `code/inference.py`.

Exit codes: 0 the endpoint is in service (or being created, with --no-wait); 1 AWS rejected a request, or the
endpoint did not come into service; 2 invalid input; 130 after Ctrl-C, which does not delete the endpoint.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "ray_app"))

from sagemaker_entry.client import sdk
from sagemaker_entry.client.endpoint import DeployConfig, build_requests
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.machine.stdout import outlive_readers

WAIT_SECONDS, WAIT_TRIES = 30, 60


def deploy(config: DeployConfig) -> None:
    """Create the endpoint and, unless --no-wait is given, wait until it is in service."""
    import boto3

    session = boto3.Session(region_name=config.region)
    if not session.region_name:
        raise UsageError("--region: no AWS region is configured; give one, such as --region us-east-1.")
    if config.dry_run:
        print(json.dumps(build_requests(config, session.region_name, config.model or ""), indent=2))
        return
    sagemaker = session.client("sagemaker")
    model_uri = config.model or find_model(sagemaker, config.job or "")
    requests = build_requests(config, session.region_name, model_uri)
    print(f"Machines:  {config.instance_count} x {config.instance_type}, billed until the endpoint is deleted")
    for method, request in requests.items():
        getattr(sagemaker, method)(**request)
    deletion = f"aws sagemaker delete-endpoint --endpoint-name {config.endpoint} --region {session.region_name}"
    # Print this before waiting: the endpoint is billed even if Ctrl-C ends the wait.
    print(f"Endpoint:  {config.endpoint}\nDelete it: {deletion}", flush=True)
    if config.wait:
        wait_until_in_service(sagemaker, config.endpoint, deletion)
        print("Status:    InService")


def find_model(sagemaker: Any, job: str) -> str:
    """S3 URI of a training job's model.

    Raises:
        UsageError: if the job has not completed.
    """
    described = sagemaker.describe_training_job(TrainingJobName=job)
    if described["TrainingJobStatus"] != "Completed":
        raise UsageError(f"--job {job}: expected a completed job, but its status is {described['TrainingJobStatus']}.")
    return str(described["ModelArtifacts"]["S3ModelArtifacts"])


def wait_until_in_service(sagemaker: Any, endpoint: str, deletion: str) -> None:
    """Wait for an endpoint to come into service.

    Raises:
        EndpointError: with the reason and the command that deletes the endpoint, if it does not.
    """
    from botocore.exceptions import WaiterError

    from sagemaker_entry.client.errors import EndpointError

    try:
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=endpoint, WaiterConfig={"Delay": WAIT_SECONDS, "MaxAttempts": WAIT_TRIES}
        )
    except WaiterError:
        described = sagemaker.describe_endpoint(EndpointName=endpoint)
        reason = described.get("FailureReason", f"its status is {described['EndpointStatus']}")
        raise EndpointError(f"endpoint {endpoint} is not in service: {reason}. Delete it: {deletion}") from None


def main() -> int:
    try:
        config = parse_flags(DeployConfig, sys.argv[1:], "python sagemaker_entry/deploy.py")
        sdk.require()
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from sagemaker_entry.client.errors import ERRORS

        try:
            deploy(config)
        except ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped waiting. If the endpoint was requested, SageMaker still creates it.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
