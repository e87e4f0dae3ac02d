"""What a run may count on in a cluster that grows."""

from pathlib import Path

import yaml

from vgg_ddp.cluster import largest_resources


def test_autoscaler_brings_each_type_of_node_up_to_its_maximum(tmp_path: Path) -> None:
    node_types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
        "gpu": {"resources": {"CPU": 4, "GPU": 1, "memory": 100}, "max_workers": 3, "node_config": {}},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2, "node_config": {}},
        "off": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 0, "node_config": {}},
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"cluster_name": "test", "available_node_types": node_types}))
    assert largest_resources(file) == {"CPU": 28, "GPU": 3}


def test_machine_that_is_no_head_node_promises_nothing(tmp_path: Path) -> None:
    assert largest_resources(tmp_path / "cluster.yaml") == {}
