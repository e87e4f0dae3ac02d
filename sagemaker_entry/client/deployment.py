"""Creates, updates, and deletes an endpoint."""

import contextlib
import dataclasses
from typing import Any

from sagemaker_entry.client.autoscaling import Requests, find_scaling, send, stop_scaling
from sagemaker_entry.client.endpoint import MARK, DeployConfig, build_requests, build_scaling, own_name
from sagemaker_entry.client.errors import AWS_ERRORS, EndpointError
from sagemaker_entry.client.region import open_boto_session
from sagemaker_entry.client.role import find_role
from vgg_ddp.flags import UsageError

WAITER = {"Delay": 30, "MaxAttempts": 60}
# What ends the wait for an endpoint.
WAIT_ENDED: tuple[type[BaseException], ...] = (*AWS_ERRORS, EndpointError, KeyboardInterrupt)
CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def deploy(config: DeployConfig) -> str:
    """Create or update an endpoint, wait until it is in service unless `wait` is off, and return its name.

    Raises:
        UsageError: if the endpoint exists but was not to be updated, or the other way round, or the role or the
            model does not exist.
        EndpointError: if the endpoint does not come into service, or an update of it fails.
        AWS_ERRORS: if AWS rejects a request. What was created until then is deleted.
    """
    session = open_boto_session(config.region)
    sagemaker, scaling = session.client("sagemaker"), session.client("application-autoscaling")
    described = describe(sagemaker.describe_endpoint, EndpointName=config.endpoint)
    check_status(config, described)
    config = dataclasses.replace(config, role=find_role(config.role, session))
    requests = build_requests(config, session.region_name, config.model or find_model(sagemaker, config.job or ""))
    limit = f" to {config.max_instances}" if config.max_instances else ""
    print_line(f"Image:     {requests['create_model']['PrimaryContainer']['Image']}")
    print_line(
        f"Machines:  {config.instance_count}{limit} x {config.instance_type}, billed until the endpoint is deleted"
    )
    start = update if described else create
    start(sagemaker, scaling, config, requests)
    return config.endpoint


def describe(method: Any, **name: str) -> dict[str, Any] | None:
    """AWS's description of an endpoint, a configuration, or a model; None if there is none of this name."""
    from botocore.exceptions import ClientError

    try:
        description: dict[str, Any] = method(**name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return description


def is_missing(error: Any) -> bool:
    """Whether AWS's error says that a resource does not exist; SageMaker has no error code for this."""
    return "Could not find" in error.response["Error"].get("Message", "")


def check_status(config: DeployConfig, described: dict[str, Any] | None) -> None:
    """Check that the endpoint exists if it is to be updated, and only then.

    Raises:
        UsageError: otherwise; it names the flag that helps.
    """
    name, status = config.endpoint, described and described["EndpointStatus"]
    if described and not config.update:
        raise UsageError(
            f"endpoint {name} exists already ({status}): use --update to replace its model, or --delete to delete it."
        )
    if config.update and not described:
        raise UsageError(f"there is no endpoint {name}: leave out --update to create it.")
    if described and status != "InService":
        raise UsageError(f"--update: expected an endpoint in service, but {name} is {status}.")


def find_model(sagemaker: Any, job: str) -> str:
    """S3 URI of a training job's model.

    Raises:
        UsageError: if the job has not completed.
    """
    described = sagemaker.describe_training_job(TrainingJobName=job)
    if described["TrainingJobStatus"] != "Completed":
        raise UsageError(f"--job {job}: expected a completed job, but its status is {described['TrainingJobStatus']}.")
    return str(described["ModelArtifacts"]["S3ModelArtifacts"])


def create(sagemaker: Any, scaling: Any, config: DeployConfig, requests: Requests) -> None:
    """Create the endpoint and, once it is in service, its scaling."""
    send_or_undo(sagemaker, requests)
    print_line(f"Endpoint:  {config.endpoint}")
    # Said before the wait: the endpoint is billed even if Ctrl-C ends the wait.
    print_line(f"Delete it: {deletion_command(sagemaker, config.endpoint)}")
    if config.wait:
        wait_until_in_service(sagemaker, config.endpoint)
        send(scaling, build_scaling(config))
        print_line("Status:    InService")


def update(sagemaker: Any, scaling: Any, config: DeployConfig, requests: Requests) -> None:
    """Update the endpoint, wait, and delete its previous configuration and model.

    Raises:
        UsageError: if the endpoint scales automatically, but would not afterwards.
        EndpointError: if the update fails. The endpoint then serves the previous model, and the new one is deleted.
    """
    name, new = config.endpoint, requests["create_model"]["ModelName"]
    old_scaling = find_scaling(scaling, name)
    if old_scaling and not config.max_instances:
        raise UsageError(f"endpoint {name} scales automatically: give --max-instances again.")
    # AWS changes the instance type only of endpoints that do not scale.
    paused = old_scaling if old_scaling and changes_type(sagemaker, config) else {}
    if paused:
        stop_scaling(scaling, name)
    try:
        send_or_undo(sagemaker, requests)
    except AWS_ERRORS:
        send(scaling, paused)
        raise
    print_line(f"Endpoint:  {name}, which serves the previous model until the new one is ready")
    print_line(f"Delete it: {deletion_command(sagemaker, name)}")
    if not config.wait:
        print_line("Left:      the previous configuration and model; the next --update or --delete deletes them")
        return
    try:
        described = wait_until_in_service(sagemaker, name)
    except WAIT_ENDED:
        if paused:
            print_line(f"NOTE: endpoint {name} no longer scales: update it again, with --max-instances.")
        raise
    if described["EndpointConfigName"] != new:
        remove(sagemaker, new)
        send(scaling, paused)
        reason = described.get("FailureReason", "AWS gives no reason")
        raise EndpointError(f"the update failed, and endpoint {name} still serves the previous model: {reason}")
    for removed in remove_all(sagemaker, name, keep=new):
        print_line(f"Deleted:   {removed}")
    send(scaling, build_scaling(config))
    print_line("Status:    InService")


def changes_type(sagemaker: Any, config: DeployConfig) -> bool:
    """Whether the update changes the type of the endpoint's instances."""
    current = sagemaker.describe_endpoint(EndpointName=config.endpoint)["EndpointConfigName"]
    variants = sagemaker.describe_endpoint_config(EndpointConfigName=current)["ProductionVariants"]
    return any(variant.get("InstanceType") != config.instance_type for variant in variants)


def delete(config: DeployConfig) -> None:
    """Delete the endpoint, its scaling, and its configurations and models, as far as they exist.

    Raises:
        UsageError: if the endpoint is not one that `deploy` created.
        AWS_ERRORS: if AWS rejects a request.
    """
    session = open_boto_session(config.region)
    sagemaker, name = session.client("sagemaker"), config.endpoint
    described = describe(sagemaker.describe_endpoint, EndpointName=name)
    if described:
        current = described["EndpointConfigName"]
        if not own_name(name, current):
            raise UsageError(
                f"--delete: endpoint {name} has the configuration {current}, which deploy.py did not create: "
                f"use aws sagemaker delete-endpoint --endpoint-name {name}."
            )
        delete_endpoint(sagemaker, config, described["EndpointStatus"])
        print_line(f"Deleted:   endpoint {name}")
    removed = remove_all(sagemaker, name)
    for thing in removed:
        print_line(f"Deleted:   {thing}")
    # Last, since it needs other permissions than the rest, which costs more.
    scaling = session.client("application-autoscaling")
    if find_scaling(scaling, name):
        stop_scaling(scaling, name)
        print_line("Deleted:   scaling")
    if not described:
        print_line(f"There is no endpoint {name}{'' if removed else ', and nothing is left of it'}.")


def delete_endpoint(sagemaker: Any, config: DeployConfig, status: str) -> None:
    """Delete an endpoint in this status and, unless `wait` is off, wait until it is gone."""
    if config.wait and status in CHANGING:
        print_line(f"Waiting:   endpoint {config.endpoint} is {status}, which AWS does not interrupt")
        # A failed endpoint can be deleted, too.
        with contextlib.suppress(EndpointError):
            wait_until_in_service(sagemaker, config.endpoint)
    if status != "Deleting":
        sagemaker.delete_endpoint(EndpointName=config.endpoint)
    if config.wait:
        sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=config.endpoint, WaiterConfig=WAITER)


def send_or_undo(sagemaker: Any, requests: Requests) -> None:
    """Send the requests that create a model, its configuration, and an endpoint; delete the rest if one is rejected."""
    # Outside of the try statement: if the name is taken, that model is in use.
    sagemaker.create_model(**requests["create_model"])
    try:
        send(sagemaker, {method: request for method, request in requests.items() if method != "create_model"})
    except AWS_ERRORS:
        # The first error is the one to report. --delete finds what is left.
        with contextlib.suppress(*AWS_ERRORS):
            remove(sagemaker, requests["create_model"]["ModelName"])
        raise


def remove_all(sagemaker: Any, endpoint: str, keep: str | None = None) -> list[str]:
    """Delete the configurations and models that were created for an endpoint, except one; return what was deleted."""
    configurations = sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=endpoint)
    models = sagemaker.get_paginator("list_models").paginate(NameContains=endpoint)
    names = [config["EndpointConfigName"] for page in configurations for config in page["EndpointConfigs"]]
    names += [model["ModelName"] for page in models for model in page["Models"]]
    ours = sorted({name for name in names if own_name(endpoint, name) and name != keep and is_ours(sagemaker, name)})
    return [removed for name in ours for removed in remove(sagemaker, name)]


def is_ours(sagemaker: Any, name: str) -> bool:
    """Whether the configuration and the model of this name, as far as they exist, are from build_requests."""
    model = describe(sagemaker.describe_model, ModelName=name)
    configuration = describe(sagemaker.describe_endpoint_config, EndpointConfigName=name)
    served = {variant.get("ModelName") for variant in (configuration or {}).get("ProductionVariants", [])}
    container = (model or {}).get("PrimaryContainer", {})
    return served <= {name} and (model is None or MARK.items() <= container.get("Environment", {}).items())


def remove(sagemaker: Any, name: str) -> list[str]:
    """Delete the configuration and the model of this name, as far as they exist; return what was deleted."""
    from botocore.exceptions import ClientError

    removed = []
    for kind, method, parameter in (
        ("configuration", sagemaker.delete_endpoint_config, "EndpointConfigName"),
        ("model", sagemaker.delete_model, "ModelName"),
    ):
        try:
            method(**{parameter: name})
            removed.append(f"{kind} {name}")
        except ClientError as error:
            if not is_missing(error):
                raise
    return removed


def wait_until_in_service(sagemaker: Any, endpoint: str) -> dict[str, Any]:
    """Wait for an endpoint to come into service, and return AWS's description of it.

    Raises:
        EndpointError: with the reason and the command that deletes the endpoint, if it does not.
    """
    from botocore.exceptions import WaiterError

    failed = False
    try:
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=WAITER)
    except WaiterError:
        failed = True
    described: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=endpoint)
    if failed:
        reason = described.get("FailureReason", f"its status is {described['EndpointStatus']}")
        deletion = deletion_command(sagemaker, endpoint)
        raise EndpointError(f"endpoint {endpoint} is not in service: {reason}. Delete it: {deletion}")
    return described


def deletion_command(sagemaker: Any, endpoint: str) -> str:
    """The command that deletes an endpoint."""
    return f"python sagemaker_entry/deploy.py --delete --endpoint {endpoint} --region {sagemaker.meta.region_name}"
