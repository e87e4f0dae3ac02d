"""The requirements, the lock file, the package's metadata, and the imports agree with each other."""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from support.command import MAIN, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "constraints.txt").read_text().splitlines()
FILES = ("requirements-train.txt", "requirements.txt", "requirements-dev.txt")
# Modules whose distribution has another name, or is installed with a required one.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "ray"}
# Imported only for --mlflow, serve.py, and runs on S3, which check that they are installed. _typeshed is for type
# checkers.
OPTIONAL = {"optuna", "mlflow", "botocore", "sqlalchemy", "pydantic", "starlette", "_typeshed"}


def lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def requirements(name: str) -> list[Requirement]:
    """Requirements of a file and of the files that it includes."""
    found = []
    for line in lines(name):
        found += requirements(line.removeprefix("-r ")) if line.startswith("-r ") else [Requirement(line)]
    return found


def locked(python: str) -> dict[str, str]:
    """Locked versions by name, on Linux x86_64."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    pins = [Requirement(line) for line in LOCK if not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in here]
    assert len(names) == len(set(names))
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, here, strict=True)}


def imported_modules(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_is_locked_to_an_allowed_version(python: str) -> None:
    pins = locked(python)
    for requirement in requirements("requirements-dev.txt"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_lock_file_has_only_exact_versions() -> None:
    pattern = r"[a-z0-9-]+==[0-9][\w.]*( ; [^/]+)?"
    assert [line for line in LOCK if not line.startswith("#") and not re.fullmatch(pattern, line)] == []


def test_each_file_includes_the_smaller_one() -> None:
    assert not any(line.startswith("-r") for line in lines(FILES[0]))
    for smaller, larger in itertools.pairwise(FILES):
        assert lines(larger)[0] == f"-r {smaller}"


def test_ray_app_imports_only_what_requirements_train_lists() -> None:
    required = {canonicalize_name(requirement.name) for requirement in requirements("requirements-train.txt")}
    own = {path.stem for path in (ROOT / "ray_app").iterdir()}
    third_party = set(imported_modules(ROOT / "ray_app")) - sys.stdlib_module_names - own - OPTIONAL
    assert {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in third_party} == required


def test_editable_install_has_every_package_and_the_training_requirements() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["dynamic"]["dependencies"]["file"] == ["requirements-train.txt"]
    found: list[str] = []
    for where in setuptools["packages"]["find"]["where"]:
        found += find_packages(str(ROOT / where), include=setuptools["packages"]["find"]["include"])
    folders = {
        file.parent.relative_to(parent)
        for parent, package in ((ROOT / "ray_app", "vgg_ddp"), (ROOT, "sagemaker_entry"))
        for file in (parent / package).rglob("__init__.py")
    }
    assert sorted(found) == sorted(".".join(folder.parts) for folder in folders)


def test_missing_package_is_reported_with_the_file_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(boto3=None, botocore=None)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(MAIN), "--num-workers", "0", "--mlflow", "local"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith("--mlflow local: MLflow or boto3 is not installed: pip install -r requirements.txt.")
