"""What needs an NVIDIA GPU, for `make gpu`: other processes have it, and this one never does."""

import json
import random
import subprocess
import sys
from pathlib import Path

import kill_jobs
import numpy as np
import pytest
import timing
from helpers import run_script
from kill_harness import Harness, Job

pytestmark = pytest.mark.gpu

FINDS_GPU = [sys.executable, str(Path(timing.__file__).with_name("gpu.py")), "--name"]


@pytest.fixture(scope="module")
def gpu():
    """The GPU's name; JAX in other processes has it, and is set up there as JAX's users have it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PLATFORMS", "ENABLE_X64", "DEFAULT_MATMUL_PRECISION"):
            patch.delenv(f"JAX_{name}", raising=False)
        for name in ("PREALLOCATE", "MEM_FRACTION", "ALLOCATOR"):
            patch.delenv(f"XLA_PYTHON_CLIENT_{name}", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        found = subprocess.run(FINDS_GPU, capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip("JAX finds no GPU")
        yield found.stdout.strip()


def test_the_first_line_of_a_run_names_the_gpu(gpu, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "feedax", "train", "--steps", "5", "--out", str(run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *_ = (
        line for line in done.stderr.splitlines() if line.startswith("feedax")
    )  # not XLA's
    assert first == f"feedax train: the run's folder is {run}; it trains on {gpu}"
    assert f"1 x {json.loads((run / 'config.json').read_text())['device']['kind']}" == gpu


TRAINS = """
    import dataclasses
    import json

    import jax
    import numpy as np
    import feedax

    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU rounds to 10 bits without
    train = feedax.NumpyLoader(feedax.datasets.mnist(train=False), 125, shuffle=True, seed=0)
    places = []

    def look(event):
        if isinstance(event, feedax.EpochEnded):
            whole = [array for array in jax.live_arrays() if array.shape == (10_000, 784)]
            places.extend(device.platform for array in whole for device in array.devices())

    # AdamW would make the rounding of tiny gradients as large as a step.
    recipe = dataclasses.replace(
        feedax.presets.MODERN, optimizer="momentum", learning_rate=0.05, epochs=1
    )
    params, history = feedax.fit(
        params=feedax.init_mlp((784, 64, 10), jax.random.key(1)), train=train, callbacks=[look],
        key=jax.random.key(2),
        **feedax.fit_arguments(recipe, steps_per_epoch=80, image_shape=(28, 28), white=255),
    )
    np.savez(OUT, *jax.tree.leaves(params))
    print(json.dumps([train.plan().name, sorted(set(places)), history[0]["loss"]]))
"""


def test_a_resident_run_lands_on_the_gpu_and_agrees_with_the_cpu(gpu, tmp_path, monkeypatch):
    """80 steps of the preset `modern`, shuffled and warped."""
    trained, losses = {}, {}
    for platform in ("gpu", "cpu"):
        if platform == "cpu":
            monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        out = tmp_path / f"{platform}.npz"
        done = run_script(tmp_path, TRAINS.replace("OUT", repr(str(out))))
        assert done.returncode == 0, done.stderr
        plan, places, losses[platform] = json.loads(done.stdout)
        assert (plan, places) == ("resident", [platform])
        with np.load(out) as file:
            trained[platform] = [*file.values()]
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-4)
    for ours, theirs in zip(trained["gpu"], trained["cpu"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


WORKS = """
    import os
    import subprocess
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import feedax

    def held():
        '''The files of NVIDIA's driver that this process has open: none without a part of a GPU.'''
        links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith("/dev/nvidia") for link in links)

    class Held:
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return np.float32([held(), torch.cuda.is_initialized(), os.getpid()]), index % 3

    jax.block_until_ready(jnp.ones(8))
    query = ["nvidia-smi", "-i", "0", "--format=csv,noheader,nounits"]
    query.append("--query-gpu=memory.used,memory.total")
    used, total = map(int, subprocess.check_output(query, text=True).split(","))
    assert held() and used > total / 2, (held(), used, total)
    loader = feedax.NumpyLoader(Held(), 8, shuffle=True, num_workers=2, plan="streamed")
    looked = np.concatenate([x for x, _ in loader])
    assert not looked[:, :2].any(), looked
    assert len(set(looked[:, 2])) == 2 and os.getpid() not in looked[:, 2]
    _, history = feedax.fit(
        lambda w, x: w @ x[:2], jnp.zeros((3, 2)), loader, epochs=2,
        evaluate={"test": loader}, metrics={"held": lambda prediction, label: prediction.sum()},
    )
    assert [row["held"] for row in history] == [0, 0], history
    assert not torch.cuda.is_initialized()
    print("done")
"""


def test_jax_keeps_its_memory_and_neither_workers_nor_torch_take_any(gpu, tmp_path):
    done = run_script(tmp_path, WORKS)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_killed_run_ends_with_the_bits_of_one_left_alone(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    kill_jobs.save_npz(tmp_path / "images.npz")
    words = "train --dataset npz:images.npz --hidden 32 --optimizer adam --learning-rate 0.003"
    job = Job(
        "gpu",
        f"{words} --shuffle --batch-size 32 --epochs 4 --checkpoint-every-steps 3",
        epoch_steps=10,
        rows=4,
    )
    harness = Harness(tmp_path)
    try:
        moments = ["while it saves, from nothing", "while it trains, from nothing"]
        assert len([*harness.kill_and_resume(job, moments, random.Random(0))]) == 2
        about = json.loads((tmp_path / "gpu-alone" / "config.json").read_text())
        assert about["device"]["platform"] == "gpu"
    finally:
        harness.close()
