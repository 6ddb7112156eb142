"""A machine with an NVIDIA GPU: what is said of it, and that torch leaves it alone.

A file stands for it here, and torch is told that it has one. `test_gpu` has the rest.
"""

import logging
from importlib.metadata import PackageNotFoundError

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import pretend_gpu

import feedax
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


def test_neither_a_run_nor_its_workers_make_torch_take_memory_of_a_gpu(tmp_path, monkeypatch):
    class Looking:  # a class of a function is sent to workers by value: they import no test
        def __len__(self):
            return 12

        def __reduce__(self):
            return arrive, (Looking,)

        def __getitem__(self, index):
            import sys

            import torch

            drawn = torch.rand(())
            return np.float32([torch.cuda.is_available(), "jax" in sys.modules, drawn]), index % 2

    def arrive(kind):
        pretend_gpu(setattr)
        return kind()

    pretend_gpu(monkeypatch.setattr)
    with pytest.raises(AssertionError, match="a part of the GPU's memory"):
        torch.ones(1, device="cuda")
    loader = feedax.NumpyLoader(Looking(), 3, shuffle=True, seed=0, num_workers=2)
    for x, _ in loader:
        assert x[:, :2].tolist() == [[True, False]] * 3
    feedax.fit(
        lambda w, x: w @ x,
        jnp.zeros((2, 3)),
        loader,
        epochs=2,
        evaluate={"test": loader},
        checkpoints=feedax.Checkpoints(tmp_path / "run", every_steps=2),
    )
    list(feedax.prefetch_to_device(loader))
