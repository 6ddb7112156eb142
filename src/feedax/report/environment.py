"""The versions and the machine that a run is written down with."""

import importlib.metadata
import os
import platform
from typing import Any

import feedax

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "torchvision", "optax")


def environment() -> dict[str, Any]:
    """What a number of this run may depend on, besides its configuration.

    Returns:
        ``versions`` by name, the ``device`` JAX computes on, and the ``cpus`` this process may use.
    """
    import jax

    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            "feedax": feedax.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "cpus": usable_cpus(),
    }


def usable_cpus() -> int:
    """CPUs that this process may run on; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
