"""README.md and docs/ contain only links, commands, flags, paths, and messages that exist. Without torch and Ray."""

import ast
import dataclasses
import re
import shlex
from functools import cache
from itertools import groupby
from pathlib import Path

import make_flags
import pytest

from support.command import ROOT
from vgg_ddp.flags import flag, parse_flags

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
FOLDERS = ("ray_app", "cluster", "sagemaker_entry", "benchmarks", "tests", "docs")
CONFIGS = {
    "ray_app/main.py": make_flags.TrainConfig,
    "ray_app/tune.py": make_flags.SweepConfig,
    "cluster/submit.sh": make_flags.TrainConfig,
    "cluster/slurm.sbatch": make_flags.TrainConfig,
    "ray_app/prepare.py": make_flags.PrepareConfig,
    "ray_app/predict.py": make_flags.PredictConfig,
    "ray_app/compare.py": make_flags.CompareConfig,
    "ray_app/serve.py": make_flags.ServeConfig,
    "sagemaker_entry/submit.py": make_flags.JobConfig,
    "sagemaker_entry/deploy.py": make_flags.DeployConfig,
}
# Programs that the pages may run besides the files of this repository.
PROGRAMS = (
    *("aws", "docker", "export", "kubectl", "mlflow", "mypy", "pip", "pytest", "ray", "ruff", "scancel", "serve"),
    *("sudo", "tensorboard", "uv", "zip"),
)
# Flags of other programs that the text mentions.
FOREIGN_FLAGS = {"--foreground", "--shm-size=...", "--standalone"}
# Parts of messages that come from Ray and the operating system.
FOREIGN_MESSAGES = {"Failed to connect to Ray cluster", "InvalidAuthToken", "No space left on device"}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub creates for a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's bash blocks, and those of its text that run a file with arguments, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += [span for span in code_spans(page) if re.match(r"(python|sudo|torchrun|cluster/\w+\.sh) \S+ \S", span)]
    words = [groupby(shlex.split(line, comments=True), "&&".__eq__) for line in lines]
    return [list(command) for groups in words for is_and, command in groups if not is_and]


@cache
def files() -> list[str]:
    found = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
    return [page_name(file) for file in found if file.is_file()]


@cache
def known_flags(script: str) -> set[str]:
    """The flags of a script, from its dataclass or from the argparse calls in it and in the benchmarks' shared code."""
    if script in CONFIGS:
        fields = dataclasses.fields(CONFIGS[script])
        return {flag(field.name) for field in fields} | {
            flag(f"no_{field.name}") for field in fields if field.type is bool
        }
    sources = [ROOT / script, *(ROOT / "benchmarks").glob("*.py")]
    return {name for source in sources for name in re.findall(r'"(--[\w-]+)"', source.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_and_anchor_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert target.startswith("https://") or linked.exists(), target
        assert not (anchor and linked.exists()) or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    for words in commands(page):
        modules = [word.replace(".", "/") + ".py" if word.startswith("benchmarks.") else word for word in words]
        scripts = [word for word in modules if word in files() or word in (".ci/run", ".ci/lock")]
        if not scripts:
            assert words[0] in PROGRAMS or words[:2] == ["python", "-c"], words
            assert all((ROOT / name).exists() for name in re.findall(r"[\w-]+\.txt", " ".join(words))), words
            continue
        arguments = words[modules.index(scripts[0]) + 1 :]
        if scripts[0] == "cluster/submit.sh" and arguments[1:2] in (["--attach"], ["--stop"]):
            assert len(arguments) == 3, words
            continue
        if scripts[0] == "cluster/submit.sh" and arguments[1:2] == ["tune.py"]:
            scripts, arguments = ["ray_app/tune.py"], arguments[2:]
        if scripts[0] in CONFIGS and "--help" not in arguments:
            parse_flags(CONFIGS[scripts[0]], arguments[scripts[0].endswith(".sh") :], scripts[0])
        elif scripts[0].endswith(".py"):
            own = arguments[: arguments.index("--")] if "--" in arguments else arguments
            assert {word for word in own if word.startswith("--")} <= known_flags(scripts[0]) | {"--help"}, words


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_flag_in_the_text_exists(page: Path) -> None:
    scripts = [file for file in files() if file in CONFIGS or re.match(r"(cluster|benchmarks)/.*\.py", file)]
    known = {name for script in scripts for name in known_flags(script)} | FOREIGN_FLAGS | {"--help"}
    known |= set(re.findall(r"(--[\w-]+)", (ROOT / "cluster" / "submit.sh").read_text()))
    named = {word for span in code_spans(page) if span.startswith("--") for word in span.split() if word[:2] == "--"}
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_path_exists(page: Path) -> None:
    for span in set(code_spans(page)):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"[\w/]+\.(py|sh|yaml|svg)", span):
            assert any(f"/{file}".endswith(f"/{span}") for file in files()), span


def test_readme_is_short_and_its_tree_matches_the_repository() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    (tree,) = re.findall(r"^```\n(ray_app/\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"  +", line.strip())[0].split():
            assert (ROOT / "/".join([*folders[:depth], name])).exists(), line
        folders[depth:] = [line.strip().split()[0].rstrip("/")]
    packages = {path.parent.name for path in (ROOT / "ray_app/vgg_ddp").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"^    (\w+)/", tree, re.MULTILINE))


def test_path_of_a_batch_names_eleven_files_and_their_functions() -> None:
    rows = re.findall(r"^\| `(\w+/\w+\.py)` \|.*\| (.*) \|$", (ROOT / "docs/how-it-works.md").read_text(), re.MULTILINE)
    assert len(rows) == 11
    for file, names in rows:
        source = (ROOT / "ray_app/vgg_ddp" / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert all(re.search(rf"(def|class) {part}\b", source) for part in name.split(".")), (file, name)


def test_troubleshooting_messages_exist_in_the_code() -> None:
    texts = [(ROOT / file).read_text() for file in files() if re.match(r"cluster/.*\.(sh|yaml)$", file)]
    for file in files():
        if re.match(r"(ray_app|cluster|sagemaker_entry)/.*\.py", file):
            for node in ast.walk(ast.parse((ROOT / file).read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts.append("\0".join(str(part.value) for part in parts if isinstance(part, ast.Constant)))
    table = prose(ROOT / "docs/troubleshooting.md").split("## Messages of ")[1]
    spans = {span for line in table.splitlines() for span in re.findall(r"`([^`]+)`", line.partition(" | ")[0])}
    assert len(spans) > 10
    for span in spans - FOREIGN_MESSAGES:
        for fragment in re.split(r"\.\.\.|\d+", span):
            if len(fragment.strip(" :")) >= 8 and fragment.strip(" :") not in FOREIGN_MESSAGES:
                assert any(fragment.strip(" :") in text for text in texts), (span, fragment)


def test_flags_page_is_current() -> None:
    assert (ROOT / "docs/flags.md").read_text() == make_flags.page(), "run python docs/make_flags.py"
