"""A model with random weights, which do not change the speed."""

from pathlib import Path


def write_random_model(folder: Path, recipe: str, image_size: int = 32) -> None:
    """Write a recipe's model for ten classes into a folder, as a run does."""
    from vgg_ddp.model.build import build_model
    from vgg_ddp.model.stored import stored_form
    from vgg_ddp.run.storage import Folder
    from vgg_ddp.weights.model_file import write_model

    preprocessing = {"image_size": image_size, "mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}
    names = [f"class {index}" for index in range(10)]
    model = stored_form(build_model(recipe, len(names), seed=0))
    write_model(Folder.at(str(folder)), model, recipe, names, preprocessing)
