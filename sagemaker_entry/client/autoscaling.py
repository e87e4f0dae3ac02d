"""Automatic scaling of an endpoint, by AWS's Application Auto Scaling.

See https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html.
"""

from typing import Any

# The name of the endpoint's only variant.
VARIANT = "all"
Requests = dict[str, dict[str, Any]]
"""Requests by boto3 method, in the order in which to send them."""


def target_of(endpoint: str) -> dict[str, str]:
    """The parameters that name what is scaled: the number of instances of the endpoint's variant."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def scaling_requests(endpoint: str, min_instances: int, max_instances: int, requests_per_minute: int) -> Requests:
    """The requests that keep each instance near this many requests per minute."""
    target = target_of(endpoint)
    metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    return {
        "register_scalable_target": target | {"MinCapacity": min_instances, "MaxCapacity": max_instances},
        "put_scaling_policy": target
        | {
            "PolicyName": f"{endpoint}-requests",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": float(requests_per_minute),
                "PredefinedMetricSpecification": metric,
            },
        },
    }


def find_scaling(scaling: Any, endpoint: str) -> Requests:
    """The requests that would restore the endpoint's present scaling; empty if it does not scale."""
    target = target_of(endpoint)
    found = scaling.describe_scalable_targets(
        ServiceNamespace=target["ServiceNamespace"], ResourceIds=[target["ResourceId"]]
    )["ScalableTargets"]
    if not found:
        return {}
    restored: Requests = {
        "register_scalable_target": target | {name: found[0][name] for name in ("MinCapacity", "MaxCapacity")}
    }
    policies = scaling.describe_scaling_policies(**target)["ScalingPolicies"]
    for policy in policies:
        if policy["PolicyType"] == "TargetTrackingScaling":
            names = ("PolicyName", "PolicyType", "TargetTrackingScalingPolicyConfiguration")
            restored["put_scaling_policy"] = target | {name: policy[name] for name in names}
    return restored


def send(client: Any, requests: Requests) -> None:
    """Send requests with a boto3 client."""
    for method, request in requests.items():
        getattr(client, method)(**request)


def stop_scaling(scaling: Any, endpoint: str) -> None:
    """Remove the endpoint's scaling. AWS deletes its policies, too."""
    scaling.deregister_scalable_target(**target_of(endpoint))
