"""The machine that this process runs on: its CPUs, its packages, this user's cache."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from feedax.errors import DatasetError


def usable_cpus() -> int:
    """CPUs that this process may run on; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def plugin_for_idle_gpu(dev: Path = Path("/dev")) -> str | None:
    """The package that JAX lacks to use this machine's NVIDIA GPU, or None.

    Args:
        dev: where the driver's devices are.

    Returns:
        ``jax[cuda13]``, or ``jax[cuda12]`` beside a torch for CUDA 12.
    """
    plugins = (f"jax-cuda{version}-plugin" for version in (12, 13))
    if not (dev / "nvidia0").exists() or any(map(package_version, plugins)):
        return None
    return "jax[cuda12]" if package_version("nvidia-cuda-runtime-cu12") else "jax[cuda13]"


def cache_folder() -> Path:
    """The folder for what can be had again: datasets, compiled programs. It need not exist yet.

    `$XDG_CACHE_HOME/feedax` where that variable holds an absolute path; else
    `~/Library/Caches/feedax` on macOS, `%LOCALAPPDATA%\\feedax` on Windows, `~/.cache/feedax`
    elsewhere.

    Raises:
        DatasetError: there is no home directory to put it in.

    >>> cache_folder().name
    'feedax'
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the XDG specification says to ignore a relative one
        return Path(named) / "feedax"
    local = os.environ.get("LOCALAPPDATA", "")
    if os.name == "nt" and local:
        return Path(local) / "feedax"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise DatasetError(
            who="datasets",
            rule="the cache folder lies in the home directory",
            found="this user has none",
            remedy="set XDG_CACHE_HOME or name a folder with root=DIR",
        ) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "feedax"
