"""Fill aws.yaml in for one stack: python cluster/render.py --stack vgg-ddp --region us-west-2.

The stack (infra.yaml) gives network, roles and bucket, AWS's public parameter the newest machine image, and the Python
environment that runs this command the versions of the packages.
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from packaging.requirements import Requirement

FOLDER = Path(__file__).resolve().parent
# Ubuntu 24.04 with NVIDIA's driver and EFA, kept up to date by AWS; its Python is 3.12.
# https://docs.aws.amazon.com/dlami/latest/devguide/what-is-dlami.html
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"


class RenderError(ValueError):
    """What the user gave, or has not set up yet, and what to do; one line."""


def fill(template: str, values: dict[str, str]) -> str:
    """Replace every <Name> of a template.

    Raises:
        RenderError: naming those without a value.
    """
    wanted = set(re.findall(r"<(\w+)>", template))
    if missing := sorted(wanted - set(values)):
        raise RenderError(f"no value for {', '.join(missing)}: deploy this version of cluster/infra.yaml first.")
    return re.sub(r"<(\w+)>", lambda found: values[found[1]], template)


def stack_outputs(stack: str, region: str) -> dict[str, str]:
    """Outputs of a stack by name.

    Raises:
        RenderError: if there is no such stack, or it is not complete.
    """
    try:
        found = boto3.client("cloudformation", region_name=region).describe_stacks(StackName=stack)["Stacks"][0]
    except (ClientError, BotoCoreError) as error:
        raise RenderError(f"--stack {stack} --region {region}: {error}") from error
    if not found["StackStatus"].endswith(("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")):
        raise RenderError(
            f"--stack {stack}: it is {found['StackStatus']}, expected CREATE_COMPLETE or UPDATE_COMPLETE."
        )
    return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}


def image_id(parameter: str, region: str) -> str:
    """Id of the machine image that a parameter of Systems Manager names.

    Raises:
        RenderError: if there is no such parameter.
    """
    try:
        answer = boto3.client("ssm", region_name=region).get_parameter(Name=parameter)
    except (ClientError, BotoCoreError) as error:
        raise RenderError(f"--image-parameter {parameter} --region {region}: {error}") from error
    return str(answer["Parameter"]["Value"])


def installed_versions(requirements: str) -> str:
    """Exact versions of the packages of a requirements file, as installed here: name==version, separated by spaces.

    Raises:
        RenderError: if one is not installed here, or its version is not one that the file allows.
    """
    pins = []
    for line in requirements.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        try:
            # Without the build: nodes with a GPU need another one of torch than a laptop may have.
            installed = version(requirement.name).partition("+")[0]
        except PackageNotFoundError:
            installed = "nothing"
        if installed == "nothing" or not requirement.specifier.contains(installed):
            raise RenderError(
                f"requirements.txt asks for {requirement}, {installed} is installed: pip install -r requirements.txt"
            )
        pins.append(f"{requirement.name}=={installed}")
    return " ".join(pins)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", required=True, help="name of the CloudFormation stack")
    parser.add_argument("--region", required=True, help="where the stack is, such as us-west-2")
    parser.add_argument("--image-parameter", default=IMAGE_PARAMETER, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=FOLDER / "aws.rendered.yaml", help="default: %(default)s")
    options = parser.parse_args()
    try:
        values = stack_outputs(options.stack, options.region)
        values["ImageId"] = image_id(options.image_parameter, options.region)
        values["Versions"] = installed_versions((FOLDER.parent / "requirements.txt").read_text())
        options.output.write_text(fill((FOLDER / "aws.yaml").read_text(), values))
    except (RenderError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"Image {values['ImageId']}, {values['Versions']}")
    print(f"Written to {options.output}. Runs belong to --storage-path s3://{values['Bucket']}/runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
