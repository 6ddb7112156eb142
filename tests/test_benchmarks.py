"""The benchmarks can be run: each can be imported; the GPU's table has its rows on a CPU."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timing

FOLDER = Path(timing.__file__).parent
ROWS = """
an epoch, resident, ms
an epoch, vectorised, ms
an epoch, streamed, ms
an epoch, the tutorial's loop, ms
the tutorial's loop / resident
the tutorial's loop / vectorised
the tutorial's loop / streamed
`modern`, training, s
`modern`, test accuracy, %
`modern`, to 99 %, s
`sweep` of 2 seeds, training of one, s
`sweep` of 2 seeds, test accuracy, %
`sweep` of 2 seeds, its mean, %
`fit` / bare loop, resident
`fit` / bare loop, streamed
`prefetch_to_device` / bare loader
"""
AIMS = ("at most 10", "at least 100", "at most 1", "at least 99", *2 * ("at most 1.05",))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_imports_what_there_is(name):
    importlib.import_module(name)


def gpu(*flags):
    command = [sys.executable, "-W", "error", str(FOLDER / "gpu.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_ends_with_a_sentence():
    done = gpu()
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == (
        "",
        "gpu.py: JAX finds no GPU, only the cpu; go to a machine with an NVIDIA GPU, or, if "
        "nvidia-smi lists one here, install JAX's plugin for it with: python3 scripts/install.py "
        "test\n",
    )


@pytest.mark.slow
def test_the_small_form_of_the_gpus_table_has_all_of_its_rows():
    done = gpu("--quick")
    assert done.returncode == 0, done.stderr
    head, _, table = done.stdout.partition("\n\n")
    assert head.startswith("the CPU, ")
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert lines[0] == ["what", "median", "least", "most", "n", "compiling, s", "aim", ""]
    assert [line[0] for line in lines[2:]] == ROWS.strip().splitlines()
    for _, median, least, most, n, compiling, aim, found in lines[2:]:
        assert 0 < float(least) <= float(median) <= float(most)
        assert int(n) in (1, 2)
        assert re.fullmatch(r"(\d+\.\d)?", compiling)
        assert found in (("kept", "**missed**") if aim else ("",))
    assert [line[6] for line in lines[2:] if line[6]] == [*AIMS, "at most 1"]
