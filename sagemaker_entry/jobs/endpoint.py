"""An endpoint that serves the model of a job."""

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any, Self

from sagemaker_entry.client.checks.given import check_given
from sagemaker_entry.client.endpoint import DeployConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint in service. It costs money until it is deleted.

    Attributes:
        name: name of the endpoint.
        region: AWS region.
    """

    name: str
    region: str

    @classmethod
    def create(cls, **settings: Any) -> Self:
        """Create an endpoint from fields of DeployConfig, of which the region is required, and wait for it."""
        from sagemaker_entry.client.deployment import deploy

        return cls(deploy(DeployConfig(**check_given(DeployConfig, settings))), settings["region"])

    def predict(self, images: "npt.NDArray[np.uint8]") -> list[dict[str, Any]]:
        """The prediction for each of up to 1,000 images: `class`, `probability`, and `probabilities` by class.

        Args:
            images: uint8, N x height x width x 3; any size, since the endpoint resizes them.
        """
        import boto3
        import numpy as np

        body = io.BytesIO()
        np.save(body, images)
        answer = (
            boto3.Session(region_name=self.region)
            .client("sagemaker-runtime")
            .invoke_endpoint(EndpointName=self.name, ContentType="application/x-npy", Body=body.getvalue())
        )
        predictions: list[dict[str, Any]] = json.loads(answer["Body"].read())["predictions"]
        return predictions

    def delete(self) -> None:
        """Delete the endpoint, its scaling, and its configurations and models; wait until it is gone."""
        from sagemaker_entry.client.deployment import delete

        delete(DeployConfig(endpoint=self.name, region=self.region, delete=True))
