import ast
import sys
from pathlib import Path

import pytest

from sagemaker_entry import launch
from sagemaker_entry.container import outcome
from support.command import ROOT


def test_old_python_is_the_failure_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "FAILURE_FILE", str(tmp_path / "failure"))
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert launch.main() == outcome.PACKAGES_MISSING
    assert (tmp_path / "failure").read_text().startswith("the image has Python 3.10: expected 3.11 or later")


def test_old_python_can_read_the_file_that_checks_its_version() -> None:
    module = ast.parse((ROOT / "sagemaker_entry" / "launch.py").read_text(), feature_version=(3, 7))
    imported = [name.name for node in module.body if isinstance(node, ast.Import) for name in node.names]
    assert imported == ["os", "sys"] and not any(isinstance(node, ast.ImportFrom) for node in module.body)
