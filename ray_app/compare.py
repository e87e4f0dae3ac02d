"""Several runs in one table and one picture: python ray_app/compare.py RUN RUN ...

Exit codes: 0 done; 2 the input cannot be used; 130 stopped by Ctrl-C.
"""

import dataclasses
import sys
from pathlib import Path

from tyro.conf import Positional

from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.output import outlive_readers


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compare runs: what they reached, the settings in which they differ, and their curves."""

    runs: Positional[tuple[str, ...]]
    """Names of runs in --storage-path, or their folders; a path or a URI (s3://...)."""
    storage_path: str = "runs"
    """Folder or URI that holds the run folders."""
    output: str = "compare.png"
    """File for the picture of their curves."""

    def __post_init__(self) -> None:
        """Check that there is something to compare.

        Raises:
            UsageError: if not.
        """
        for location in (*self.runs, self.storage_path):
            refuse_password("storage_path", location)
        if len(self.runs) < 2:
            raise UsageError("expected two runs or more.")
        if len(set(self.runs)) < len(self.runs):
            raise UsageError("expected each run once.")


def main() -> int:
    try:
        config = parse_flags(CompareConfig, sys.argv[1:], "python ray_app/compare.py")
        from vgg_ddp.comparison import draw, format_differences, format_table, read_run

        runs = [read_run(location, config.storage_path) for location in config.runs]
        print(format_table(runs))
        differences = format_differences(runs)
        print(f"\nSettings that differ:\n{differences}" if differences else "\nAll have the same settings.")
        try:
            Path(config.output).write_bytes(draw(runs))
        except OSError as error:
            raise UsageError(f"--output {config.output} cannot be written: {error}") from error
        print(f"\nCurves: {Path(config.output).resolve()}")
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
