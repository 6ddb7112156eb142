"""Optimizers and schedules by name, and any other transformation of optax under `fit`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers import bits, slow, slow_but
from optax import contrib

import feedax
from feedax.errors import OptimizerError
from feedax.train.optimizers import build_optimizer, build_schedule, depends_on_length

# What ours is held against, Optax and loops by hand, mixes ranks and dtypes.
pytestmark = pytest.mark.usefixtures("others_mix")

NAMES = (
    *("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "nadam", "radam"),
    *("adabelief", "lion"),
)
OF_OPTAX = {
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
}
RATE = np.float32(0.01)


def leaves(seed=0):
    """Parameters, and 20 gradients for them."""
    rng = np.random.default_rng(seed)
    trees = [
        {"b": rng.normal(size=3).astype(np.float32), "w": rng.normal(size=(4, 3)).astype("f4")}
        for _ in range(21)
    ]
    return jax.tree.map(jnp.asarray, trees[0]), trees[1:]


def descend(optimizer, params, gradients, rate):
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u * rate, params, updates)
    return params


def near(one, other, rtol=2e-6, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), one, other)


# Schedules


COUNTS = jnp.arange(305)
"""One shape for all, so that little is compiled."""


def of_torch(make, steps):
    """What a scheduler of torch multiplies the learning rate 1 by, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for step in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (7, 0), (7, 3), (2, 1), (300, 299), (300, 10)]
)
def test_cosine_is_that_of_optax_step_by_step(steps, warmup):
    factor = build_schedule("cosine", steps, warmup_steps=warmup)
    oracle = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    if not warmup:
        oracle = optax.cosine_decay_schedule(1.0, steps)
    near(factor(COUNTS), oracle(COUNTS), 0, 3e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 101, 300])
def test_one_cycle_is_that_of_torch_step_by_step(steps):
    def make(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, steps, cycle_momentum=False)

    factors = build_schedule("one_cycle", steps)(COUNTS)
    near(factors[:steps], of_torch(make, steps), 0, 3e-7)


def test_one_cycle_leads_that_of_optax_by_one_step_at_most():
    # torch turns a step earlier: at 0.3 * 300 - 1, and ends at the last step.
    factor = np.array(build_schedule("one_cycle", 300)(COUNTS))
    oracle = np.array(jax.vmap(optax.cosine_onecycle_schedule(300, 1.0))(COUNTS))
    assert (np.argmax(factor), np.argmax(oracle)) == (89, 90)
    now, next_ = oracle[:300], oracle[1:301]
    assert np.all(np.minimum(now, next_) - 1e-6 <= factor[:300])
    assert np.all(factor[:300] <= np.maximum(now, next_) + 1e-6)


@pytest.mark.parametrize("warmup", [0, 4])
def test_step_is_that_of_torch_step_by_step(warmup):
    lrs = torch.optim.lr_scheduler

    def make(optimizer):
        parts = [lrs.StepLR(optimizer, 7, 0.3)]
        if warmup:
            parts.append(lrs.LambdaLR(optimizer, lambda step: min(step / warmup, 1)))
        return lrs.ChainedScheduler(parts)

    # A chain of torch multiplies what stands there: a warm-up from 0 would stay 0.
    expected = [0.3 ** (step // 7) * (min(step / warmup, 1) if warmup else 1) for step in range(50)]
    if not warmup:
        near(expected, of_torch(make, 50), 1e-12, 0)
    factor = build_schedule("step", decay_steps=7, decay_rate=0.3, warmup_steps=warmup)
    near(factor(COUNTS)[:50], np.float32(expected), 1e-6, 0)


def test_constant_rises_over_its_warm_up_and_stays():
    factor = build_schedule("constant", warmup_steps=4)
    assert [float(factor(step)) for step in (0, 1, 2, 3, 4, 5, 10**9)] == [0, 0.25, 0.5, 0.75] + [
        1
    ] * 3
    assert float(build_schedule()(0)) == 1


SCHEDULES = {
    "constant": {"warmup_steps": 3},
    "cosine": {"steps": 10, "warmup_steps": 3},
    "one_cycle": {"steps": 10},
    "step": {"decay_steps": 4, "warmup_steps": 3},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_traced_counts_and_goes_on_past_its_end(name):
    factor = build_schedule(name, **SCHEDULES[name])
    one_by_one = np.array([factor(step) for step in range(30)])
    zeros = jnp.zeros(30, one_by_one.dtype)
    looped = jax.lax.fori_loop(0, 30, lambda i, all_: all_.at[i].set(factor(i)), zeros)
    near(looped, one_by_one, 1e-6, 1e-7)
    last = factor(np.int32(2**31 - 1))
    assert math.isfinite(last)
    assert last.shape == ()
    if depends_on_length(name):
        near(one_by_one[10:], np.full(20, last), 0, 0)


# Optimizers


@pytest.mark.parametrize("name", slow_but(["sgd", "adamw", "lion"], NAMES))
def test_each_name_is_that_function_of_optax_to_the_bit(name):
    params, gradients = leaves()
    ours = descend(build_optimizer(name), params, gradients, RATE)
    oracle = OF_OPTAX.get(name, getattr(optax, name, None))(RATE)
    assert bits(ours) == bits(descend(oracle, params, gradients, np.float32(1)))


OF_TORCH = {
    "sgd": lambda params: torch.optim.SGD(params, RATE),
    "momentum": lambda params: torch.optim.SGD(params, RATE, momentum=0.9),
    "nesterov": lambda params: torch.optim.SGD(params, RATE, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, RATE),
    "adamw": lambda params: torch.optim.AdamW(params, RATE, weight_decay=0.1),
}


@pytest.mark.parametrize("clip_norm", [slow(None), 2.0])
@pytest.mark.parametrize("name", OF_TORCH)
def test_the_optimizers_are_those_of_torch(name, clip_norm):
    params, gradients = leaves()
    theirs = [torch.tensor(np.asarray(p), requires_grad=True) for p in jax.tree.leaves(params)]
    optimizer = OF_TORCH[name](theirs)
    for grads in gradients:
        for param, grad in zip(theirs, jax.tree.leaves(grads), strict=True):
            param.grad = torch.tensor(grad)
        if clip_norm:
            assert torch.nn.utils.clip_grad_norm_(theirs, clip_norm) > clip_norm
        optimizer.step()
    decay = 0.1 if name == "adamw" else None
    ours = build_optimizer(name, weight_decay=decay, clip_norm=clip_norm)
    ours = descend(ours, params, gradients, RATE)
    near(jax.tree.leaves(ours), [param.detach().numpy() for param in theirs], 1e-5, 1e-5)


def test_weight_decay_is_decoupled_and_takes_every_array():
    params, gradients = leaves()
    for name, decay in (("adamw", 0.3), ("lion", 0.2)):
        ours = descend(build_optimizer(name, weight_decay=decay), params, gradients, RATE)
        oracle = getattr(optax, name)(RATE, weight_decay=decay)
        assert bits(ours) == bits(descend(oracle, params, gradients, np.float32(1)))
    expected = jax.tree.map(np.float64, params)
    trace = jax.tree.map(np.zeros_like, expected)
    for grads in gradients:
        trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, grads)
        expected = jax.tree.map(lambda p, t: p - 0.01 * (t + 0.3 * p), expected, trace)
    ours = build_optimizer("momentum", weight_decay=0.3)
    near(descend(ours, params, gradients, RATE), expected)


def test_sgd_multiplies_as_by_hand_to_the_bit_and_keeps_nothing():
    optimizer = build_optimizer("sgd")
    params, gradients = leaves()
    state = optimizer.init(params)
    assert jax.tree.leaves(state) == []
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        ours = jax.tree.map(lambda u: u * jnp.float32(RATE), updates)
        assert bits(ours) == bits(jax.tree.map(lambda g: -(RATE * g), grads))


@pytest.mark.parametrize("schedule", ["constant", *SCHEDULES])
def test_only_a_schedule_that_changes_counts_its_steps(schedule):
    options = SCHEDULES[schedule] if schedule != "constant" else {}
    state = build_optimizer("sgd", schedule=schedule, **options).init({"w": jnp.zeros(3)})
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [jnp.int32] * bool(options)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_scheduled_optimizer_is_that_of_optax(name):
    params, gradients = leaves()
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.01, 3, 15)
    ours = build_optimizer(name, schedule="cosine", steps=15, warmup_steps=3)
    oracle = descend(getattr(optax, name)(rate), params, gradients, np.float32(1))
    near(descend(ours, params, gradients, RATE), oracle)


@pytest.mark.parametrize("schedule", ["cosine", slow("step")])
def test_networks_of_several_learning_rates_train_side_by_side(schedule):
    params, gradients = leaves()
    gradients = jax.tree.map(lambda *each: jnp.stack(each), *gradients)
    optimizer = build_optimizer("adam", schedule=schedule, clip_norm=1.0, **SCHEDULES[schedule])

    def train(rate, state, first, last):
        def step(i, carry):
            params, state = carry
            updates, state = optimizer.update(
                jax.tree.map(lambda g: g[i], gradients), state, params
            )
            return jax.tree.map(lambda p, u: p + u * rate, params, updates), state

        return jax.lax.fori_loop(first, last, step, state)

    start = (params, optimizer.init(params))
    train = jax.jit(train)
    rates = jnp.array([0.1, 0.01, 0.003])
    together = jax.vmap(train, (0, None, None, None))(rates, start, 0, 20)
    for i, rate in enumerate(rates):
        near(train(rate, start, 0, 20), jax.tree.map(lambda leaf, i=i: leaf[i], together))
    # A state that went through a file is NumPy's; the run goes on with the same bits.
    half = jax.tree.map(np.array, train(rates[0], start, 0, 8))
    assert bits(train(rates[0], half, 8, 20)) == bits(train(rates[0], start, 0, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "adamm"},
            "optimizer: name must be one of sgd, momentum, nesterov, rmsprop, adagrad, adam, "
            "adamw, nadam, radam, adabelief, lion, and it is 'adamm'; did you mean 'adam'?",
        ),
        (
            {"schedule": "zzz"},
            "schedule: name must be one of constant, cosine, one_cycle, step, and it is 'zzz'; "
            "choose one of them",
        ),
        (
            {"schedule": "cosine"},
            "schedule: 'cosine' must know how long the run is, and steps is None; give "
            "steps=N, those of the whole run",
        ),
        (
            {"schedule": "cosine", "steps": 10, "warmup_steps": 10},
            "schedule: warmup_steps=N must be shorter than the run, and it is 10 of 10 steps; "
            "lower it, or train longer",
        ),
        (
            {"schedule": "one_cycle", "steps": 10, "warmup_steps": 2},
            "schedule: 'one_cycle' has a warm-up of its own, and warmup_steps is 2; leave it out, "
            "or choose schedule='cosine'",
        ),
        (
            {"schedule": "step"},
            "schedule: decay_steps must be given with 'step' and with no other, and it is None "
            "with 'step'; give it",
        ),
        (
            {"schedule": "cosine", "steps": 10, "decay_steps": 5},
            "schedule: decay_steps must be given with 'step' and with no other, and it is 5 with "
            "'cosine'; leave it out, or choose 'step'",
        ),
        (
            {"warmup_steps": -1},
            "schedule: warmup_steps must be a whole number from 0 to 2147483647, and it is -1; "
            "give a number of steps",
        ),
        (
            {"schedule": "cosine", "steps": 2.5},
            "schedule: steps must be a whole number from 1 to 2147483647, and it is 2.5; give a "
            "number of steps",
        ),
        (
            {"schedule": "step", "decay_steps": 0},
            "schedule: decay_steps must be a whole number from 1 to 2147483647, and it is 0; give "
            "a number of steps",
        ),
        (
            {"schedule": "step", "decay_steps": 5, "decay_rate": 0.0},
            "schedule: decay_rate must be a finite number > 0, and it is 0.0; give the factor of "
            "one decay",
        ),
        (
            {"weight_decay": -0.1},
            "optimizer: weight_decay must be a finite number >= 0, and it is -0.1; give 0 for none",
        ),
        (
            {"weight_decay": math.nan},
            "optimizer: weight_decay must be a finite number >= 0, and it is nan; give 0 for none",
        ),
        (
            {"clip_norm": 0},
            "optimizer: clip_norm must be a finite number > 0, and it is 0; leave it out to clip "
            "nothing",
        ),
        (
            {"clip_norm": "one"},
            "optimizer: clip_norm must be a finite number > 0, and it is 'one'; leave it out to "
            "clip nothing",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(options, message):
    with pytest.raises(OptimizerError) as error:
        build_optimizer(**options)
    assert str(error.value) == message


# Any transformation of optax under `fit`


def sam():
    it = contrib.sam(optax.sgd(0.01), optax.sgd(0.01), sync_period=2)
    return optax.GradientTransformation(
        it.init, lambda g, state, params: it.update(g, state, params)
    )


def opaque_sam():
    it = contrib.sam(optax.sgd(0.01), optax.sgd(0.01), sync_period=2, opaque_mode=True)

    def update(grads, state, params, *, value_fn, **_):
        return it.update(grads, state, params, grad_fn=lambda at, _: jax.grad(value_fn)(at))

    return optax.GradientTransformationExtraArgs(it.init, update)


def sophia():
    it = contrib.sophia(0.01)

    def update(grads, state, params, *, value_fn, **_):
        return it.update(grads, state, params, obj_fn=value_fn)

    return optax.GradientTransformationExtraArgs(it.init, update)


def accumulated_polyak():
    it = optax.MultiSteps(optax.polyak_sgd(), 4)
    return optax.GradientTransformationExtraArgs(it.init, it.update)


def on_plateau():
    return optax.chain(optax.adam(0.01), contrib.reduce_on_plateau(patience=2))


def injected():
    rate = optax.cosine_decay_schedule(0.01, 20)
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate)


def partitioned():
    return optax.partition(
        {"fast": optax.adam(0.01), "none": optax.set_to_zero()}, {"w": "fast", "b": "none"}
    )


def noisy():
    return optax.chain(optax.add_noise(0.01, 0.55, key=jax.random.key(1)), optax.adam(0.01))


AS_THEY_ARE = {
    "adafactor": optax.adafactor,
    "rprop": lambda: optax.rprop(0.01),
    "sm3": lambda: optax.sm3(0.01),
    "polyak_sgd": optax.polyak_sgd,
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.01), 5),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.01), 4),
    "inject_hyperparams": injected,
    "partition": partitioned,
    "add_noise": noisy,
    "reduce_on_plateau": on_plateau,
    "prodigy": contrib.prodigy,
    "schedule_free": lambda: contrib.schedule_free_sgd(0.1),
    "cocob": contrib.cocob,
}
REPRESENTATIVES = ["MultiSteps", "reduce_on_plateau", "sam", "sophia"]
ADAPTED = {
    "sam": sam,
    "sam, opaque": opaque_sam,
    "sophia": sophia,
    "MultiSteps of polyak_sgd": accumulated_polyak,
}


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3)) + 0.5).astype(np.float32)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.zeros(3)}
    return params, x, y


def affine(params, x):
    return x @ params["w"] + params["b"]


def squared(prediction, target):
    return jnp.mean((prediction - target) ** 2)


def by_hand(optimizer, params, x, y):
    """The loop of optax's own guides: 20 steps of 16 examples."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        extra = {}
        if isinstance(optimizer, optax.GradientTransformationExtraArgs):
            extra = {"value": value, "grad": grads, "value_fn": loss}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for start in 2 * list(range(0, 160, 16)):
        params, state = step(params, state, x[start : start + 16], y[start : start + 16])
    return params


@pytest.mark.parametrize("name", slow_but(REPRESENTATIVES, [*AS_THEY_ARE, *ADAPTED]))
def test_fit_trains_as_a_loop_by_hand_with_any_optimizer_of_optax(name):
    optimizer = (AS_THEY_ARE | ADAPTED)[name]()
    params, x, y = problem()
    # These examples are resident: the steps run in one loop, which wants a state of stable types.
    loader = feedax.NumpyLoader(feedax.data.ArrayDataset(x, y), 16)
    trained, _ = feedax.fit(affine, params, loader, loss=squared, optimizer=optimizer, epochs=2)
    near(trained, by_hand(optimizer, params, x, y), 1e-5, 1e-5)
    assert bits(trained) != bits(params)


def test_fit_passes_a_line_search_its_arguments_step_by_step_too():
    params, x, y = problem()
    search = optax.scale_by_backtracking_linesearch(15, store_grad=True)
    optimizer = optax.lbfgs(memory_size=2, linesearch=search)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 160, 16)]
    trained, _ = feedax.fit(affine, params, batches, loss=squared, optimizer=optimizer, epochs=2)
    near(trained, by_hand(optimizer, params, x, y), 1e-5, 1e-5)


def test_lookahead_trains_its_fast_parameters():
    inner = optax.lookahead(optax.adam(0.01), 5, 0.5)
    optimizer = optax.GradientTransformation(
        inner.init, lambda grads, state, params: inner.update(grads.fast, state, params)
    )
    params, x, y = problem()
    trained, _ = feedax.fit(
        lambda both, x: affine(both.fast, x),
        optax.LookaheadParams.init_synced(params),
        [(x, y)],
        loss=squared,
        optimizer=optimizer,
        epochs=10,
    )
    expected = optax.LookaheadParams.init_synced(params)
    state = inner.init(expected)
    for _ in range(10):
        grads = jax.grad(lambda p: jnp.mean((x @ p["w"] + p["b"] - y) ** 2))(expected.fast)
        updates, state = inner.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    near(tuple(trained), tuple(expected), 1e-5, 1e-5)
