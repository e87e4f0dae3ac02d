"""Serve a trained model: python sagemaker_entry/deploy.py --role ARN --job NAME --endpoint NAME ...

The container is one of AWS's own images. The model archive contains the code that it runs.

Exit codes: 0 the endpoint is in service (or being created, with --no-wait), or deleted; 1 AWS rejected a request, or
the endpoint did not come into service; 2 invalid input; 130 after Ctrl-C, which does not delete the endpoint.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "ray_app"))

from sagemaker_entry.client import sdk
from sagemaker_entry.client.endpoint import DeployConfig, build_requests, build_scaling
from sagemaker_entry.client.region import open_boto_session
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.machine.stdout import outlive_readers


def run(config: DeployConfig) -> None:
    """Deploy or delete the endpoint, or print the requests that would deploy it."""
    from sagemaker_entry.client.deployment import delete, deploy

    if config.dry_run:
        region = open_boto_session(config.region).region_name
        requests = build_requests(config, region, config.model or "") | build_scaling(config)
        print(json.dumps(requests, indent=2))
    elif config.delete:
        delete(config)
    else:
        deploy(config)


def main() -> int:
    try:
        config = parse_flags(DeployConfig, sys.argv[1:], "python sagemaker_entry/deploy.py")
        sdk.require()
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from sagemaker_entry.client.errors import ERRORS

        try:
            run(config)
        except ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped waiting. SageMaker still carries out what was requested.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
