"""The layout of the source, read without importing it: imports, sizes, private names."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from sagemaker_entry.container import outputs

ROOT = Path(__file__).resolve().parents[2]
# The parent folder of each package.
PACKAGES = {"vgg_ddp": ROOT / "ray_app", "sagemaker_entry": ROOT, "benchmarks": ROOT}
PROGRAM = [ROOT / name for name in ("ray_app", "sagemaker_entry", "benchmarks", "cluster", "docs")]
# Where private names may be used: those of Ray, torch, pyarrow, and tensorboardX; those of the SageMaker SDK.
PRIVATE_HOMES = ("ray_app/vgg_ddp/compat/", "sagemaker_entry/client/sdk.py")
# Documented although they start with an underscore.
PUBLIC = {"os._exit", "_typeshed.ReadableBuffer"}
# The serving container gets this folder unchanged, next to its part of vgg_ddp.
NO_PACKAGES = {"sagemaker_entry/container/serve"}
MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES = 15, 300, 60


@cache
def sources(*folders: Path) -> list[Path]:
    found = sorted(file for folder in folders for file in folder.rglob("*.py"))
    assert len(found) > 5, folders
    return found


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def place(file: Path, node: ast.AST | None = None) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> dict[str, Path]:
    """Name and file of each module of our packages; a package has the name of its folder."""
    return {
        ".".join(file.relative_to(parent).with_suffix("").parts).removesuffix(".__init__"): file
        for package, parent in PACKAGES.items()
        for file in sources(parent / package)
    }


def imports(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """All imports in a file, including inside functions: our modules by their full names, other names as written."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(file, node)}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                ours = str(node.module).split(".")[0] in PACKAGES
                yield (name if name in modules() or not ours else str(node.module)), node


def require_one_way(edges: dict[tuple[str, str], str]) -> None:
    """Fail if the imports form a cycle, and list them."""
    graph: dict[str, set[str]] = {}
    for source, target in edges:
        graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        steps = [f"{a} imports {b}: {edges[a, b]}" for a, b in pairwise(cycle)]
        pytest.fail("\n".join(steps))


def test_cycle_is_found_and_its_imports_are_named() -> None:
    edges = {("a", "b"): "a.py:1", ("b", "c"): "b.py:2", ("c", "a"): "c.py:3", ("d", "a"): "d.py:4"}
    with pytest.raises(pytest.fail.Exception) as failure:
        require_one_way(edges)
    assert sorted(str(failure.value).splitlines()) == [
        "a imports b: a.py:1",
        "b imports c: b.py:2",
        "c imports a: c.py:3",
    ]


def test_modules_have_no_import_cycles() -> None:
    require_one_way(
        {
            (module, target): place(file, node)
            for module, file in modules().items()
            for target, node in imports(file)
            if target in modules() and target != module
        }
    )


def folder_of(module: str) -> str:
    """The folder of a module; a module next to the folders of its package counts as a folder."""
    return module if module.count(".") == 1 else module.rpartition(".")[0]


def test_folders_have_no_import_cycles() -> None:
    edges = {
        (folder_of(module), folder_of(target)): place(file, node)
        for module, file in modules().items()
        for target, node in imports(file)
        if target in modules()
    }
    require_one_way({(source, target): where for (source, target), where in edges.items() if source != target})


def test_sagemaker_client_and_container_do_not_import_each_other() -> None:
    sides = {"client": "container", "container": "client"}
    crossing = [
        f"{place(file, node)}: {target}"
        for side, other in sides.items()
        for file in sources(ROOT / "sagemaker_entry" / side)
        for target, node in imports(file)
        if target.startswith(f"sagemaker_entry.{other}")
    ]
    assert not crossing, "\n".join(crossing)


def test_folders_have_few_modules() -> None:
    folders: dict[Path, int] = {}
    for file in sources(*PROGRAM):
        folders[file.parent] = folders.get(file.parent, 0) + (file.name != "__init__.py")
    crowded = [f"{folder.relative_to(ROOT)}: {count}" for folder, count in folders.items() if count > MAX_MODULES]
    assert not crowded, "\n".join(crowded)


def test_files_and_functions_are_short() -> None:
    long = []
    for file in sources(*PROGRAM, ROOT / "tests"):
        lines = len(file.read_text().splitlines())
        if lines > MAX_LINES:
            long.append(f"{place(file)}: {lines} lines")
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{place(file, node)}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


def test_each_package_has_a_one_line_docstring() -> None:
    wrong = []
    for folder in sorted({file.parent for package, parent in PACKAGES.items() for file in sources(parent / package)}):
        if str(folder.relative_to(ROOT)) in NO_PACKAGES:
            continue
        init = folder / "__init__.py"
        tree = parse(init) if init.exists() else ast.Module([], [])
        docstring = ast.get_docstring(tree)
        # Benchmarks also put the program on the path, and the others offer the Python API.
        has_code = folder in (ROOT / "benchmarks", ROOT / "ray_app" / "vgg_ddp", ROOT / "sagemaker_entry")
        if not docstring or "\n" in docstring or (len(tree.body) > 1 and not has_code):
            wrong.append(place(init))
    assert not wrong, "\n".join(wrong)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Private names of other packages in a file: imported, as attributes, or in strings that name a module."""
    nodes = list(ast.walk(parse(file)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for name, node in imports(file):
        if is_private(name) and name not in PUBLIC:
            yield name, node
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if ast.unparse(node.value) not in ("self", "cls") and ast.unparse(node) not in PUBLIC:
                yield ast.unparse(node), node
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("getattr", "hasattr", "setattr", "import_module", "getLogger"):
                texts = [part.value for part in node.args if isinstance(part, ast.Constant)]
                yield from ((text, node) for text in texts if isinstance(text, str) and is_private(text))


def test_private_names_of_other_packages_are_used_only_in_compat() -> None:
    used = [
        f"{place(file, node)}: {name}"
        for file in sources(*PROGRAM)
        if not str(file.relative_to(ROOT)).startswith(PRIVATE_HOMES)
        for name, node in private_names(file)
    ]
    assert not used, "\n".join(used)


def test_known_uses_of_private_names_are_found() -> None:
    compat = ROOT / "ray_app" / "vgg_ddp" / "compat"
    assert any("_get_default_store" in name for name, _ in private_names(compat / "torch_store.py"))
    assert any("_create_default_callbacks" in name for name, _ in private_names(compat / "ray_train.py"))


def test_serving_archive_imports_only_itself_and_what_the_images_contain() -> None:
    """SageMaker's images have these packages; of vgg_ddp, they get only the archive's part."""
    package, serve = ROOT / "ray_app" / "vgg_ddp", ROOT / "sagemaker_entry" / "container" / "serve"
    files = {file for pattern in outputs.CODE for file in package.glob(pattern)}
    archive = {name for name, file in modules().items() if file in files}
    assert len(archive) == len(files) > 10
    allowed = sys.stdlib_module_names | {"torch", "numpy", "PIL"}
    # Of the scripts, only the one for AWS's Ray Serve image needs more.
    extra = {serve / "inference.py": set[str](), serve / "deployment.py": {"ray", "starlette"}}
    foreign = [
        f"{place(file, node)}: {name}"
        for file in sorted({*files, *extra})
        for name, node in imports(file)
        if name.split(".")[0] not in allowed | extra.get(file, set()) and name not in archive
    ]
    assert not foreign, "\n".join(foreign)


def test_model_package_does_not_import_the_rest() -> None:
    foreign = [
        f"{place(file, node)}: {name}"
        for file in sources(ROOT / "ray_app" / "vgg_ddp" / "model")
        for name, node in imports(file)
        if name.startswith(("vgg_ddp", "sagemaker_entry", "PIL")) and not name.startswith("vgg_ddp.model")
    ]
    assert not foreign, "\n".join(foreign)
