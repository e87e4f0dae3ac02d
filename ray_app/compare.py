"""Compare runs in a table and a plot: python ray_app/compare.py RUN RUN ...

Exit codes: 0 done, even if the plot could not be drawn; 1 standard output cannot be written; 2 invalid input; 130
stopped by Ctrl-C.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import ClassVar

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.machine.environment import check_environment, run_script


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compare runs: results, settings that differ, and curves."""

    POSITIONAL: ClassVar = ("runs",)

    runs: tuple[str, ...]
    """Names of runs in --storage-path, or run folders (paths or URIs, s3://...)."""
    storage_path: str = "runs"
    """Folder or URI (s3://...) of the run folders."""
    output: str = "compare.png"
    """File to write the plot of the curves to (PNG)."""

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            UsageError: if an argument is invalid.
        """
        for run in self.runs:
            refuse_password("RUNS", run)
        refuse_password("--storage-path", self.storage_path)
        if len(self.runs) < 2:
            raise UsageError("expected at least two runs.")
        if repeated := [run for run in self.runs if self.runs.count(run) > 1]:
            raise UsageError(f"{repeated[0]} is given more than once.")


def write_picture(output: str, picture: bytes) -> None:
    """Write the plot, and print where it is.

    Raises:
        UsageError: if this fails.
    """
    try:
        Path(output).write_bytes(picture)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error}") from error
    print(f"\nCurves: {Path(output).resolve()}")


def main() -> int:
    try:
        check_environment()
        config = parse_flags(CompareConfig, sys.argv[1:], "python ray_app/compare.py")
        from vgg_ddp.run.curves import draw
        from vgg_ddp.run.notes import noted
        from vgg_ddp.run.summary import format_differences, format_table, read_run

        runs = [read_run(location, config.storage_path) for location in config.runs]
        print(format_table(runs))
        differences = format_differences(runs)
        print(f"\nSettings that differ:\n{differences}" if differences else "\nAll runs have the same settings.")
        picture = b""
        with noted("the curves could not be drawn"):
            picture = draw(runs)
        if picture:
            write_picture(config.output, picture)
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    run_script(main, output_is_result=True)
