"""The software and the machine of a run: what its folder records, what its bits depend on."""

import logging
import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from feedax.errors import shown
from feedax.feed import Devices
from feedax.machine import package_version, plugin_for_idle_gpu, usable_cpus

LOGGER = logging.getLogger("feedax")
PACKAGES = ("jax", "jaxlib", "numpy", "torch", "torchvision", "optax")


def software_and_machine() -> dict[str, Any]:
    """What a run's folder records of the software and the machine."""
    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            "feedax": package_version("feedax"),
            **{name: package_version(name) for name in PACKAGES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "cpus": usable_cpus(),
    }


def environment(devices: Devices, precision: Any) -> dict[str, Any]:
    """The versions, the devices and the settings that decide what XLA computes to the last bit."""
    device = jax.devices()[0]
    # torch, NumPy and feedax draw the order of the examples, and change them.
    packages = ("jaxlib", "optax", "torch", "numpy", "feedax")
    settings = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
    return {
        "jax": jax.__version__,
        **{name: package_version(name) for name in packages},
        "machine": platform.machine(),
        "device": device.device_kind,
        "platform version": device.client.platform_version,
        # XLA splits its sums among them.
        "usable CPUs": usable_cpus(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: getattr(jax.config, name) for name in settings},
        "devices": devices.count,
        "processes": devices.processes,
        "precision": None if precision is None else jnp.dtype(precision).name,
    }


@cache
def tell_of_idle_gpu(who: str) -> None:
    """Say, once, that this machine's GPU is not used for want of JAX's plugin.

    Nothing is said where somebody has chosen JAX's platforms.
    """
    config: Any = jax.config
    plugin = None if config.jax_platforms else plugin_for_idle_gpu()
    if plugin is not None and jax.default_backend() == "cpu":
        LOGGER.warning(
            f"{who}: JAX needs its plugin to train on this machine's GPU, and it is not installed; "
            f"run: pip install '{plugin}'"
        )


def tell_of_differences(before: Mapping[str, Any], now: Mapping[str, Any], who: str) -> None:
    """Warn that a resumed run may not have the bits of an uninterrupted one."""
    changed = [
        f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]
    if changed:
        LOGGER.warning(
            f"{who}: a resumed run has the bits of an uninterrupted one only if nothing else has "
            f"changed, and {'; '.join(changed)}"
        )
