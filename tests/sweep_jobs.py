"""What the tests of `sweep` train, here and in processes of their own.

JAX is imported in functions only: worker processes import this module too.
"""

import functools
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import bits, problem, timeless

COUNT, SIZE = 52, 8  # six batches and a short one
STEPS = 7


def is_step(event):
    """Whether an event comes after a step; those after an epoch come as its step 0."""
    from feedax.train import Stepped

    return isinstance(event, Stepped) and event.step > 0


class Noisy(torch.utils.data.Dataset):
    """Every example is another one each time that it is loaded."""

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        x, y = problem()
        return x[i] + np.random.normal(0, 0.1, 6).astype(np.float32), y[i]


def loader(plan="resident", seed=None, dtype=np.float32, **options):
    from feedax.data import ArrayDataset, NumpyLoader

    data = Noisy() if plan == "streamed" else ArrayDataset(*problem(dtype=dtype))
    return NumpyLoader(data, SIZE, shuffle=True, seed=seed, plan=plan, **options)


def init(key):
    import jax

    w, v = jax.random.split(key)
    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    return {
        "w": jax.random.normal(w, (16, 6), dtype) / 3,
        "v": jax.random.normal(v, (3, 16), dtype) / 3,
    }


def predict(params, x, key, train, dropout=0.2):
    import jax
    import jax.numpy as jnp

    hidden = jax.nn.relu(params["w"] @ x)
    if train:
        kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
        hidden = jnp.where(kept, hidden / (1 - dropout), 0)
    return params["v"] @ hidden


def noisy(key, x, noise=0.1):
    import jax

    return x + (noise * jax.random.normal(key, x.shape)).astype(x.dtype)


def smoothed(prediction, target, smoothing):
    import jax
    import optax

    labels = optax.smooth_labels(jax.nn.one_hot(target, 3), smoothing)
    return optax.softmax_cross_entropy(prediction, labels)


def decayed(weight_decay):
    from feedax import build_optimizer

    return build_optimizer("adamw", weight_decay=weight_decay)


def normed(params, state, x, train):
    """Batch norm over the axis "batch"."""
    import jax
    from jax import lax

    hidden = params["w"] @ x
    now = lax.pmean(hidden, "batch") if train else state
    new = 0.9 * state + 0.1 * now if train else state
    return params["v"] @ jax.nn.relu(hidden - now), new


def batched(params, x):
    import jax

    return jax.nn.relu(x @ params["w"].T) @ params["v"].T


def conv(params, x):
    from jax import lax

    kernel = params["w"][:, None, :3]
    forms = ("NHC", "OIH", "NHC")
    x = lax.conv_general_dilated(x[None, :, None], kernel, (1,), "SAME", dimension_numbers=forms)
    return params["v"] @ x[0].mean(0)


def numbers(network):
    """All that must be the same in two runs."""
    return network.name, bits(network.params), timeless(network.history), str(network.error)


def train(folder: Any = None, **options):
    """Four networks, side by side or not."""
    import feedax

    given = {
        "seeds": 2,
        "learning_rate": [0.01, 0.03],
        "epochs": 2,
        "evaluate": {"test": [problem(1)]},
        "checkpoints": folder and feedax.Checkpoints(folder, every_steps=3),
    }
    source = options.pop("source", None) or loader()
    return feedax.sweep(
        options.pop("predict", predict), options.pop("init", init), source, **given | options
    )


@functools.cache
def uninterrupted(together: int = 1) -> list[Any]:
    """The four networks of a sweep that nothing stops; once for all who ask."""
    return list(map(numbers, train(together=together).networks))


def stopper(after: int):
    """Stops a sweep after so many steps of all its networks together."""
    steps = []

    def stop(event):
        import feedax

        steps.append(is_step(event))
        if sum(steps) == after:
            raise feedax.StopTraining

    return stop


def killed(folder: str, together: str) -> None:
    """Dies in the middle of the second network, or of the second epoch of all of them."""
    import feedax
    from feedax.train.training import Training

    Training.report_seconds, Training.chunk_steps = 0.0, 1
    ended = []

    def kill(event):
        ended.extend([event] * isinstance(event, feedax.train.NetworkEnded))
        is_late = isinstance(event, feedax.train.Stepped) and (event.epoch, event.step) == (1, 5)
        if is_late and (ended or int(together) > 1):
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, together=int(together), callbacks=[kill])


def on_eight_devices(name: str, out: str) -> None:
    """What is side by side on 8 devices of one process."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    given = dict(JOBS[name])
    found = train(source=loader(given.pop("plan")), devices=8, **given)
    kept = [
        (one.name, [np.asarray(leaf) for leaf in jax.tree.leaves(one.params)], one.history)
        for one in found.networks
    ]
    Path(out).write_bytes(pickle.dumps(kept))


JOBS: dict[str, Any] = {
    "resident": {"plan": "resident", "together": 3, "seeds": 5},
    "streamed": {"plan": "streamed", "together": 12, "seeds": 6},
}


if __name__ == "__main__":
    # Under its own name, so that what is pickled here can be loaded anywhere.
    import sweep_jobs

    getattr(sweep_jobs, sys.argv[1])(*sys.argv[2:])
