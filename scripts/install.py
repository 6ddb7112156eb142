"""Install feedax into .venv: with uv, or with pip where uv cannot.

    python3 scripts/install.py [EXTRA ...]

On a machine whose `nvidia-smi` lists a GPU, JAX's plugin for it is installed too. The script needs
nothing but Python, and finishes what an interrupted one began.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
SIZES = {True: "3.3 GB to fetch, 6.0 GB on disk, 4 minutes", False: "0.4 GB, 1 minute"}
"""Of JAX and PyTorch, by whether torch comes with CUDA, as PyPI's builds for Linux do."""
ADDED = {
    "test": "the tools of the tests (0.2 GB to fetch, 10 seconds)",
    "bench": "the libraries to compare with (0.04 GB to fetch, 10 seconds)",
    "docs": "the tools of the documentation site (0.1 GB to fetch, 10 seconds)",
}
"""By extra, what it adds to JAX and PyTorch."""
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
"""Settings of pip, and the variables that tell uv the same: uv does not read pip's."""


def main(extras: Sequence[str]) -> None:
    if sys.version_info < OLDEST:
        sys.exit(
            "feedax needs Python {}.{} or newer, and {} is {}.{}; name another one: "
            "make PYTHON=python3.12".format(*OLDEST, sys.executable, *sys.version_info[:2])
        )
    folder = CLONE / ".venv"
    python = str(environment(folder))
    print(f"Installing {contents(folder, extras)} into .venv, once ...", flush=True)
    install(python, extras)
    if (extra := extra_for_gpu(folder)) is not None:
        print(f"Installing JAX's plugin for this machine's GPU ({extra}) ...", flush=True)
        install(python, [*extras, extra])


def environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with pip, made anew if there is no whole one."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not succeeds([str(python), "-m", "pip", "--version"]):
        venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=True).create(folder)
    return python


def install(python: str, extras: Sequence[str]) -> None:
    """Install feedax from this clone: with uv, or else with pip.

    Raises:
        SystemExit: pip failed, too; it says why.
    """
    what = ["--editable", ".[{}]".format(",".join(extras)) if extras else "."]
    settings = pip_settings(python)
    problem = run_uv(python, what, settings)
    if problem:
        print(f"uv cannot install it ({problem}); pip does, which takes longer.", flush=True)
        run = run_quietly([python, "-m", "pip", "install", "--quiet", *what])
        if run.returncode:
            sys.exit(run.stdout + run.stderr)


def run_uv(python: str, what: Sequence[str], settings: Mapping[str, str]) -> str:
    """Install with uv; why it failed, or nothing."""
    uv = find_uv(python)
    if uv is None:
        run = run_quietly([python, "-m", "pip", "install", "--quiet", "uv"])
        uv = find_uv(python)
        if run.returncode or uv is None:
            return "pip finds no uv"
    command = [uv, "pip", "install", "--quiet", "--python", python, *what]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")
    run = run_quietly(command, {**uv_variables(settings), **os.environ})
    if run.returncode == 0:
        return ""
    said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"exit code {run.returncode}"


def find_uv(python: str) -> str | None:
    """The uv on the PATH, or else the one beside an interpreter."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path(python).parent))


def pip_settings(python: str) -> dict[str, str]:
    """What pip's files and variables say, as pip itself reads them; variables win."""
    run = run_quietly([python, "-m", "pip", "config", "list"])
    found: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        for line in run.stdout.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                found[name[len(section) :]] = ast.literal_eval(value)
    return found


def uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of pip as uv reads them. Like pip's, all indexes count the same."""
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, variable in SETTINGS.items():
        if name in settings:
            between = "," if name == "find-links" else " "
            variables[variable] = between.join(settings[name].split())
    return variables


def contents(folder: Path, extras: Sequence[str]) -> str:
    """What will be installed, and how much of it is not there yet."""
    parts = [ADDED[extra] for extra in extras]
    if torch_cuda(folder) is None:
        parts.insert(0, f"feedax with JAX and PyTorch (about {SIZES[brings_cuda(folder)]})")
    return " and ".join(parts) or "what is new in feedax"


def brings_cuda(folder: Path) -> bool:
    """Whether torch comes with CUDA: the one that is there, or will be."""
    cuda = torch_cuda(folder)
    if cuda is None and os.environ.get("UV_TORCH_BACKEND") == "cpu":
        return False
    return platform.system() == "Linux" if cuda is None else cuda > 0


def torch_cuda(folder: Path) -> int | None:
    """The major version of the CUDA that the installed torch is for: 0 without, None: no torch."""
    for path in folder.glob("lib/python*/site-packages/torch/version.py"):
        found = re.search(r"^cuda\b[^=]*= '(\d+)", path.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return None


def extra_for_gpu(folder: Path) -> str | None:
    """The extra that brings JAX's plugin for this machine's NVIDIA GPU, if it has one.

    It is for the CUDA that torch came with, whose libraries both then share; beside a torch
    without CUDA, for the newest that the driver can run.
    """
    if not has_gpu():
        return None
    newest = re.search(r"CUDA Version: (\d+)", run_quietly(["nvidia-smi"]).stdout)
    cuda = torch_cuda(folder) or (int(newest[1]) if newest else 0)
    return f"cuda{min(cuda, 13)}" if cuda >= 12 else None


def has_gpu() -> bool:
    return "GPU 0" in run_quietly(["nvidia-smi", "-L"]).stdout


def succeeds(command: Sequence[str]) -> bool:
    return run_quietly(command).returncode == 0


def run_quietly(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the clone and keep what it prints; one that is not there fails."""
    try:
        return subprocess.run(
            command, cwd=CLONE, env=variables, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("The installation was interrupted; the same command finishes it.")
