"""Which GPUs torch has code for."""

import pytest

from vgg_ddp.machine.gpus import runs_code_for

BUILD = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120")


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 0), BUILD, False),
        ((7, 5), BUILD, True),
        ((8, 0), BUILD, True),
        ((8, 9), BUILD, True),
        ((9, 0), BUILD, True),
        ((10, 0), BUILD, False),
        # Older than all code of its major version.
        ((8, 0), ("sm_86",), False),
        # PTX is compiled for any newer GPU.
        ((12, 0), ("sm_80", "compute_90"), True),
        ((8, 9), ("compute_90",), False),
        # Features of one architecture, and of one family.
        ((9, 0), ("sm_90a",), True),
        ((12, 1), ("sm_120a",), False),
        ((12, 1), ("sm_120f",), True),
        ((12, 1), ("compute_90a",), False),
        ((12, 1), ("compute_100f",), False),
        ((9, 0), (), False),
    ],
)
def test_gpu_runs_code_of_its_major_version_and_older_ptx(
    capability: tuple[int, int], architectures: tuple[str, ...], expected: bool
) -> None:
    assert runs_code_for(capability, architectures) == expected
