"""What a benchmark must say of itself: the machine, the versions, the date."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """The machine and the versions, two lines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("feedax", "jax", "torch", "torchvision", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    today = datetime.date.today().isoformat()
    return (
        f"{_processor()}, {cores} usable cores, {platform.system()}, {today}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
