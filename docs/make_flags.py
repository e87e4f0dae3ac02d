"""Write flags.md from the settings in the code: python docs/make_flags.py"""

import dataclasses
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ray_app"))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from compare import CompareConfig
from predict import PredictConfig
from prepare import PrepareConfig

from sagemaker_entry.client.endpoint import DeployConfig
from sagemaker_entry.client.settings import JobConfig
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import field_help, flag
from vgg_ddp.serving.config import ServeConfig
from vgg_ddp.sweep.config import SweepConfig

OTHER_COMMANDS = {
    "Tune": (SweepConfig, "`python ray_app/tune.py SPACE` takes the flags of `main.py` and these:"),
    "Prepare images": (PrepareConfig, "`python ray_app/prepare.py IMAGE_FOLDER OUTPUT`"),
    "Predict": (PredictConfig, "`python ray_app/predict.py MODEL [FILES]`"),
    "Serve": (ServeConfig, "`python ray_app/serve.py MODEL`"),
    "Compare runs": (CompareConfig, "`python ray_app/compare.py RUN OTHER_RUN`"),
    "SageMaker jobs": (JobConfig, "`python sagemaker_entry/submit.py` takes the flags of `main.py` and these:"),
    "SageMaker endpoints": (DeployConfig, "`python sagemaker_entry/deploy.py`"),
}
INTRODUCTION = """# Flags

`python docs/make_flags.py` writes this page from the help texts in the code, which `--help` also shows. Hyphens and
underscores both work in flags. A dash means that there is no default. `--no-wait` turns `--wait` off, and so on."""
HEADER = "| flag | default | meaning |\n| --- | --- | --- |"


def rows(config: type) -> dict[str, str]:
    """A row for each field that a dataclass adds to its base class."""
    texts, positional, written = field_help(config), getattr(config, "POSITIONAL", ()), {}
    for field in dataclasses.fields(config):
        if field.name in config.__annotations__:
            shown = field.name.upper() if field.name in positional else flag(field.name)
            meaning = re.sub(r"--[\w-]+|[\w.]*\*[\w.]+", r"`\g<0>`", texts[field.name])
            written[field.name] = f"| `{shown}` | {shown_default(field.default)} | {meaning} |"
    return written


def shown_default(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "-" if default is dataclasses.MISSING or default in (None, "", ()) else str(default)


def page() -> str:
    parts = [INTRODUCTION, "\n## Train\n\n`python ray_app/main.py`"]
    for name, row in rows(TrainConfig).items():
        if name in TrainConfig.GROUPS:
            parts.append(f"\n### {TrainConfig.GROUPS[name].capitalize()}\n\n{HEADER}")
        parts.append(row)
    for title, (config, command) in OTHER_COMMANDS.items():
        parts += [f"\n## {title}\n\n{command}\n\n{HEADER}", *rows(config).values()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("flags.md").write_text(page())
