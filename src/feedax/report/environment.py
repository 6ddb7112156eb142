"""The versions and the machine that a run is written down with."""

import platform
from typing import Any

import feedax
from feedax.machine import package_version, usable_cpus

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
            **{name: package_version(name) for name in PACKAGES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "cpus": usable_cpus(),
    }
