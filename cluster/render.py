"""Fill in aws.yaml for one stack: python cluster/render.py --stack vgg-ddp --region us-west-2.

The network, the roles, and the bucket come from the stack (infra.yaml); the newest machine image comes from a public
parameter that AWS maintains.
"""

import argparse
import re
import sys
from pathlib import Path

try:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError
except ModuleNotFoundError:
    print("render.py: error: boto3 is not installed: pip install -r requirements.txt.", file=sys.stderr)
    sys.exit(2)

FOLDER = Path(__file__).resolve().parent
# Ubuntu 24.04 with NVIDIA's driver and EFA, maintained by AWS; its Python is 3.12.
# https://docs.aws.amazon.com/dlami/latest/devguide/what-is-dlami.html
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
PARAMETER_HELP = "Systems Manager parameter that holds the image ID (default: %(default)s)"


class RenderError(ValueError):
    """Invalid input or a missing resource; the message is one line that says what to do."""


def fill(template: str, values: dict[str, str]) -> str:
    """Replace every <Name> in a template.

    Raises:
        RenderError: if a name has no value.
    """
    names = set(re.findall(r"<(\w+)>", template))
    if missing := sorted(names - set(values)):
        raise RenderError(f"no value for {', '.join(missing)}: deploy this version of cluster/infra.yaml first.")
    return re.sub(r"<(\w+)>", lambda match: values[match[1]], template)


def stack_outputs(stack: str, region: str) -> dict[str, str]:
    """Outputs of a stack, by key.

    Raises:
        RenderError: if the stack does not exist or is not complete.
    """
    try:
        described = boto3.client("cloudformation", region_name=region).describe_stacks(StackName=stack)["Stacks"][0]
    except (ClientError, BotoCoreError) as error:
        raise RenderError(f"--stack {stack} --region {region}: {error}") from error
    if not described["StackStatus"].endswith(("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")):
        raise RenderError(
            f"--stack {stack}: its status is {described['StackStatus']}, expected CREATE_COMPLETE or UPDATE_COMPLETE."
        )
    return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}


def image_id(parameter: str, region: str) -> str:
    """ID of the machine image in a Systems Manager parameter.

    Raises:
        RenderError: if the parameter does not exist.
    """
    try:
        response = boto3.client("ssm", region_name=region).get_parameter(Name=parameter)
    except (ClientError, BotoCoreError) as error:
        raise RenderError(f"--image-parameter {parameter} --region {region}: {error}") from error
    return str(response["Parameter"]["Value"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", required=True, help="name of the CloudFormation stack")
    parser.add_argument("--region", required=True, help="region of the stack, such as us-west-2")
    parser.add_argument("--image-parameter", default=IMAGE_PARAMETER, help=PARAMETER_HELP)
    output = FOLDER / "aws.rendered.yaml"
    parser.add_argument("--output", type=Path, default=output, help="cluster file to write (default: %(default)s)")
    options = parser.parse_args()
    try:
        values = stack_outputs(options.stack, options.region)
        values["ImageId"] = image_id(options.image_parameter, options.region)
        options.output.write_text(fill((FOLDER / "aws.yaml").read_text(), values))
    except (RenderError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"Image: {values['ImageId']}")
    print(f"Written to {options.output}. Train with --storage-path s3://{values['Bucket']}/runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
