"""The machine that this process runs on, and what is installed there."""

import os
from importlib.metadata import PackageNotFoundError, version


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
