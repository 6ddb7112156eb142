"""A machine with an NVIDIA GPU and no plugin for it: what is said. The GPU is a file here."""

import logging
from importlib.metadata import PackageNotFoundError

import jax
import pytest

from feedax import machine
from feedax.feed import Devices
from feedax.machine import plugin_for_idle_gpu, usable_cpus
from feedax.train import environment

SENTENCE = (
    "fit: JAX needs its plugin to train on this machine's GPU, and it is not installed; run: "
    "pip install 'jax[cuda13]'"
)


def installed(*packages):
    def version(package):
        if package in packages:
            return "1.0"
        raise PackageNotFoundError(package)

    return version


@pytest.mark.parametrize(
    ("packages", "plugin"),
    [
        ([], "jax[cuda13]"),
        (["nvidia-cuda-runtime"], "jax[cuda13]"),
        (["nvidia-cuda-runtime-cu12"], "jax[cuda12]"),
        (["nvidia-cuda-runtime", "jax-cuda13-plugin"], None),
        (["jax-cuda12-plugin"], None),
    ],
)
def test_the_plugin_that_fits_the_cuda_of_torch(tmp_path, monkeypatch, packages, plugin):
    monkeypatch.setattr(machine, "version", installed(*packages))
    assert plugin_for_idle_gpu(tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert plugin_for_idle_gpu(tmp_path) == plugin


def test_it_is_said_once_and_not_to_who_has_chosen_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(environment, "plugin_for_idle_gpu", lambda: "jax[cuda13]")
    before = jax.config.jax_platforms
    try:
        with caplog.at_level(logging.INFO, logger="feedax"):
            for platforms, said in (("cpu", []), (None, [SENTENCE])):
                jax.config.update("jax_platforms", platforms)
                environment.tell_of_idle_gpu.cache_clear()
                for _ in range(2):
                    environment.tell_of_idle_gpu("fit")
                assert caplog.messages == said
    finally:
        jax.config.update("jax_platforms", before)


def test_devices_speak_of_themselves():
    assert str(Devices(1)) == f"the CPU, {usable_cpus()} core{'s' * (usable_cpus() > 1)}"
