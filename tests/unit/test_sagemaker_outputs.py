import ast

import outputs
from command import ROOT


def test_code_beside_a_model_holds_all_that_it_imports_of_ours() -> None:
    package = ROOT / "ray_app" / "vgg_ddp"
    files = [package / name for name in outputs.CODE_FILES] + [ROOT / "sagemaker_entry" / "serve" / "inference.py"]
    imports = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vgg_ddp")
    }
    assert imports == {"vgg_ddp.batches", "vgg_ddp.convolution", "vgg_ddp.model", "vgg_ddp.winograd"}
    assert {f"{name.removeprefix('vgg_ddp.')}.py" for name in imports} <= set(outputs.CODE_FILES)
