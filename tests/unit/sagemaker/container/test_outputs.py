import ast

from sagemaker_entry.container import outputs
from support.command import ROOT


def test_archive_includes_every_module_that_its_code_imports() -> None:
    package = ROOT / "ray_app" / "vgg_ddp"
    folder = package / outputs.CODE_FOLDER
    files = [*folder.glob("*.py"), ROOT / "sagemaker_entry" / "container" / "serve" / "inference.py"]
    imports = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vgg_ddp")
    }
    assert imports and all(name.startswith(f"vgg_ddp.{outputs.CODE_FOLDER}.") for name in imports)
