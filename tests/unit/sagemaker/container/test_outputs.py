import ast
from pathlib import Path

from sagemaker_entry.container import outputs


def imported_modules(file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in nodes if node.module and node.module.startswith("vgg_ddp")}


def test_archive_consists_of_the_scripts_and_the_modules_that_they_need(tmp_path: Path) -> None:
    outputs.copy_code(tmp_path)
    scripts = sorted(file.name for file in tmp_path.glob("*.py"))
    assert scripts == ["deployment.py", "inference.py"]
    needed, found = {name for script in scripts for name in imported_modules(tmp_path / script)}, set[str]()
    while needed:
        name = needed.pop()
        found.add(name)
        needed |= imported_modules(tmp_path / f"{name.replace('.', '/')}.py") - found
    copied = {
        ".".join(file.relative_to(tmp_path).with_suffix("").parts)
        for file in (tmp_path / "vgg_ddp").rglob("*")
        if file.is_file()
    }
    packages = {f"vgg_ddp{folder}.__init__" for folder in (".data", ".model", ".serving")}
    assert found == copied - packages and packages <= copied
