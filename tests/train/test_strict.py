"""What JAX's strict settings refuse, feedax does not do."""

import contextlib
import itertools
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import slow_but

import feedax
from feedax import augment
from feedax.data.array_dataset import ArrayDataset
from feedax.train.optimizers import build_optimizer, build_schedule

STRICT = [lambda: jax.transfer_guard("disallow"), lambda: jax.debug_nans(True)]
RNG = np.random.default_rng(0)
X, Y = RNG.random((40, 6, 6), np.float32), RNG.integers(0, 3, 40)
DATA = ArrayDataset(X, Y)
CHANGE = augment.compose(
    partial(augment.warp, rotation=10, scale=0.1, alpha=5),
    partial(augment.crop, padding=1, edges="reflect"),
    augment.flip,
    partial(augment.cutout, size=2),
    partial(augment.brightness, strength=0.3),
    partial(augment.contrast, strength=0.3),
)


def loader(plan="auto", **options):
    return feedax.NumpyLoader(DATA, 16, shuffle=True, seed=0, plan=plan, **options)


def init(key):
    return feedax.init_network_params([36, 5, 3], key)


def dropped(params, x, key, train, rate):
    x = jnp.ravel(x)
    if train:
        x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x, jnp.zeros((), x.dtype))
    return feedax.predict(params, x)


def plain(params, x):
    return feedax.predict(params, jnp.ravel(x))


def normed(params, state, x, train):
    x = jnp.ravel(x).astype(state.dtype)
    mean = jax.lax.pmean(x, "batch") if train else state
    hidden = (x - mean).astype(params[0][0].dtype)
    return feedax.predict(params, hidden), state * 0.9 + mean * 0.1 if train else state


def everything(params, folder):
    """Augmented, mixed, dropped out, measured, saved, and gone on with."""
    given = {
        "augment": CHANGE,
        "mixup": 0.2,
        "hyperparams": {"rate": 0.5},
        "metrics": {"right": lambda p, t: jnp.argmax(p) == t},
        "best": "test_loss",
    }
    for epochs in (1, 2):
        found = feedax.fit(
            dropped, params, loader(), epochs=epochs, evaluate={"test": loader("streamed")},
            checkpoints=feedax.Checkpoints(folder, every_steps=2), **given,
        )  # fmt: skip
    return found


def bfloat16(params, folder):
    return feedax.fit(
        normed, params, loader("streamed"), state=np.zeros(36, np.float32), precision="bfloat16",
        evaluate={"test": loader()}, optimizer=build_optimizer("adamw", schedule="cosine", steps=3),
    )  # fmt: skip


def swept(params, folder, together=2, devices=None):
    found = feedax.sweep(
        plain, init, loader().with_seed, seeds=2, learning_rate=[0.1, 0.01], epochs=2,
        optimizer=build_optimizer("sgd"), evaluate={"test": loader()}, together=together,
        best="test_loss", checkpoints=feedax.Checkpoints(folder), devices=devices,
    )  # fmt: skip
    return [(one.params, one.history) for one in found.networks]


def scored(params, folder):
    plans = ("resident", "vectorised", "streamed")
    scores = [feedax.evaluate(plain, params, loader(plan)) for plan in plans]
    ahead = feedax.prefetch_to_device(loader(), last="pad")
    skipping = optax.apply_if_finite(optax.adam(1e-3), 2)
    return scores, feedax.fit(plain, params, ahead, optimizer=skipping)


def numbers(found):
    """Of parameters and rows, to the bit; the times apart."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return [
        np.asarray(jax.device_get(leaf)).tobytes()
        for path, leaf in leaves
        if "second" not in jax.tree_util.keystr(path)
    ]


@pytest.mark.parametrize(
    ("run", "x64"),
    slow_but(
        [(everything, False)],
        itertools.product([everything, bfloat16, swept, scored], [False, True]),
    ),
)
def test_a_run_under_strict_settings_has_the_bits_of_any_other(run, x64, tmp_path):
    params = init(jax.random.key(1))
    with contextlib.ExitStack() as stack:
        for one in [*STRICT, lambda: jax.enable_x64(x64)]:
            stack.enter_context(one())
        strict = run(params, tmp_path / "strict")
    if x64:  # other random numbers, and longer ones
        leaves = [leaf for leaf in jax.tree.leaves(strict) if hasattr(leaf, "dtype")]
        assert all(np.isfinite(np.float64(jax.device_get(leaf))).all() for leaf in leaves)
        return
    assert numbers(strict) == numbers(run(params, tmp_path / "plain"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cosine", {"steps": 8}), ("one_cycle", {"steps": 8}), ("step", {"decay_steps": 3})],
)
def test_schedules_mix_no_dtypes(name, options):
    """A step counts in int32; the factor is the same number as where JAX may mix."""
    factor = build_schedule(name, **options)
    counts = jnp.arange(9, dtype=jnp.int32)
    strict = jax.jit(jax.vmap(factor))(counts)
    with jax.numpy_dtype_promotion("standard"):
        mixed = jax.jit(jax.vmap(build_schedule(name, **options)))(counts)
    assert strict.tolist() == mixed.tolist()


@pytest.mark.slow
def test_several_devices_under_all_settings(tmp_path):
    """In a process of its own, with the settings as a person sets them: in its environment."""
    job = f"""if True:
        import sys; sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
        import jax, feedax, test_strict as own
        with jax.transfer_guard("allow"):
            params = own.init(jax.random.key(1))
        for epochs in (1, 2):
            saved = feedax.Checkpoints("one")
            feedax.fit(own.plain, params, own.loader(), devices=2, epochs=epochs, mixup=0.2,
                       augment=own.CHANGE, evaluate={{"test": own.loader("streamed")}},
                       checkpoints=saved)
        own.swept(params, "swept", together=4, devices=2)
        print("done")
    """
    strict = {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_DEBUG_NANS": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    }
    done = subprocess.run(
        [sys.executable, "-c", job], cwd=tmp_path, env={**os.environ, **strict}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
