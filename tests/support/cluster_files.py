"""The cluster files, parsed as Ray and CloudFormation parse them."""

from typing import Any

import yaml

from support.command import ROOT

CLUSTER = ROOT / "cluster"
AWS = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
TEMPLATES = ("HeadTemplate", "WorkerTemplate", "EfaTemplate")


class _Template(yaml.SafeLoader):
    """CloudFormation's YAML: a tag such as !Sub becomes {"Sub": ...}."""


def _function(loader: _Template, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.ScalarNode)
    return {suffix: loader.construct_scalar(node)}


_Template.add_multi_constructor("!", _function)
INFRA = yaml.load((CLUSTER / "infra.yaml").read_text(), Loader=_Template)
RESOURCES: dict[str, dict[str, Any]] = INFRA["Resources"]


def with_efa() -> dict[str, Any]:
    """aws.yaml with the lines of efa_spot uncommented."""
    text = (CLUSTER / "aws.yaml").read_text()
    start = text.index("  # efa_spot:")
    end = text.index("\n\n", start)
    config: dict[str, Any] = yaml.safe_load(text[:start] + text[start:end].replace("  # ", "  ") + text[end:])
    return config
