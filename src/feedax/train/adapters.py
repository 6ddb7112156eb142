"""Flax models for `fit`: NNX modules, which hold their arrays, and Linen modules with variables.

Flax models are written for batches, so they are called on whole batches: an ordinary batch norm
then sees the batch, on any number of devices. Flax is imported only by who has a Flax model.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from feedax.errors import ModelError

PyTree = Any

_FIELDS = ("predict", "params", "state", "batched")
_WHERE_TRAINED = ("train", "training", "is_training")
_WHERE_NOT_TRAINED = ("deterministic", "use_running_average")


@dataclass(frozen=True, eq=False)
class Adapted(Mapping[str, Any]):
    """A model as `fit` takes it: ``fit(**adapted, train=train)``.

    Attributes:
        predict: a function of (params, state, x, key, train) for a batch x, which returns
            (prediction, state).
        params: the trainable parameters, nested dicts of arrays.
        state: everything else that the model holds (batch statistics), nested dicts of arrays.
        merge: a function of (params, state) that returns what the library itself works with: a
            new NNX module, or Linen's variables.
        batched: True, predict takes a batch.
    """

    predict: Callable[..., Any]
    params: PyTree
    state: PyTree
    merge: Callable[[PyTree, PyTree], Any]
    batched: bool = True

    def __getitem__(self, name: str) -> Any:
        if name not in _FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)


def from_nnx(model: Any) -> Adapted:
    """A Flax NNX module as `fit` takes it.

    Its ``Param`` variables are trained, all others are its state. In every step its random
    streams start from the step's key. It is in training mode in steps, and in evaluation mode in
    evaluation, as by ``model.train()`` and ``model.eval()``; if its ``__call__`` has a parameter
    ``train``, ``deterministic`` or ``use_running_average`` it is told by that too, and if it has a
    parameter ``rngs`` it gets streams of the step's key.

    Args:
        model: the module, called on a batch of inputs. It stays as it is.

    Returns:
        What `fit` takes; ``merge(params, state)`` gives a module again.

    Raises:
        ModelError: it is not an NNX module.

    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
    >>> adapted = from_nnx(model)
    >>> sorted(adapted.params["layers"][1]), sorted(adapted.state["layers"][1])
    (['bias', 'scale'], ['mean', 'var'])
    >>> adapted.merge(adapted.params, adapted.state)(jnp.ones((3, 2))).shape
    (3, 4)
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise ModelError(
            f"from_nnx: the model must be an nnx.Module, and it is {_kind(model)}; give the module "
            "itself, not its state, and from_linen(module, variables) for a Linen module"
        )

    def split(module: Any) -> Any:
        nnx.pop(module, nnx.Intermediate)
        graph, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return graph, *map(nnx.to_pure_dict, parts)

    graph, params, streams, state = split(nnx.clone(model))
    parameters = inspect.signature(model.__call__).parameters

    def predict(params: PyTree, state: PyTree, x: PyTree, key: Array, train: bool) -> Any:
        _refuse_one_example("from_nnx")
        module = nnx.merge(graph, params, _restarted(streams, key), state)
        (module.train if train else module.eval)()
        rngs = {"rngs": nnx.Rngs(key)} if "rngs" in parameters else {}
        prediction = module(x, **_mode(parameters, train), **rngs)
        return prediction, split(module)[-1]

    def merge(params: PyTree, state: PyTree) -> Any:
        return nnx.merge(graph, params, streams, state)

    return Adapted(predict, params, state, merge)


def from_linen(module: Any, variables: Mapping[str, Any]) -> Adapted:
    """A Flax Linen module and its variables as `fit` takes them.

    The collection ``params`` is trained, all others are its state, mutable in training only. The
    stream ``dropout`` and every other stream come from the step's key. The module's ``__call__``
    should have a parameter ``train`` (or ``training``, ``is_training``), or else ``deterministic``
    or ``use_running_average``; without one it gets no random streams in evaluation, so that a
    dropout that is always on ends in an error and not in wrong numbers.

    Args:
        module: the module, called on a batch of inputs.
        variables: what ``module.init`` returned.

    Returns:
        What `fit` takes; ``merge(params, state)`` gives variables again.

    Raises:
        ModelError: it is not a Linen module, or there are no parameters among the variables.

    >>> import flax.linen as nn
    >>> module = nn.Dense(4)
    >>> adapted = from_linen(module, module.init(jax.random.key(0), jnp.ones((1, 2))))
    >>> sorted(adapted.params), adapted.state
    (['bias', 'kernel'], {})
    >>> module.apply(adapted.merge(adapted.params, adapted.state), jnp.ones((3, 2))).shape
    (3, 4)
    """
    import flax.linen as nn
    from flax.core import unfreeze
    from flax.errors import FlaxError

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"from_linen: the module must be a flax.linen.Module, and it is {_kind(module)}; give "
            "from_linen(module, variables), and from_nnx(model) for an NNX module"
        )
    if not isinstance(variables, Mapping) or "params" not in variables:
        names = list(variables) if isinstance(variables, Mapping) else _kind(variables)
        raise ModelError(
            "from_linen: variables must have the collection 'params', and they are "
            f"{names}; give what module.init returned"
        )
    state = unfreeze(dict(variables))
    params = state.pop("params")
    apply: Any = module.apply
    mode = inspect.signature(module.__call__).parameters
    told = bool(_mode(mode, True))

    def predict(params: PyTree, state: PyTree, x: PyTree, key: Array, train: bool) -> Any:
        _refuse_one_example("from_linen")
        # Streams of other names start from "params", by Linen's own rule.
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)} if train or told else None
        call = {"rngs": rngs, **_mode(mode, train)}
        try:
            if not train:
                return apply(merge(params, state), x, **call), state
            return apply(merge(params, state), x, mutable=list(state), **call)
        except FlaxError as error:
            raise ModelError(_why(module, error, train or told)) from error

    def merge(params: PyTree, state: PyTree) -> dict[str, Any]:
        return {"params": params, **state}

    return Adapted(predict, params, state, merge)


def refuse_nnx(params: PyTree, who: str) -> None:
    """Refuse NNX modules where plain parameters are asked for.

    As plain parameters running means would be trained, and a module would stay in training mode
    in evaluation. A tree of ``Param`` variables, as `nnx.split` makes it, is no danger.

    Raises:
        ModelError: there is an NNX module, or a variable other than ``Param``.
    """
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= params.keys():
        raise ModelError(
            f"{who}: params must hold what is trained alone, and they hold a Linen module's "
            "batch_stats too; write net = feedax.from_linen(module, variables) and "
            "feedax.fit(**net, train=...)"
        )
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return
    kinds = (nnx.Module, nnx.Variable)
    for leaf in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(leaf, kinds) and not isinstance(leaf, nnx.Param):
            raise ModelError(
                f"{who}: params must hold no NNX module and no variable but Param, whose "
                f"statistics it would train and whose mode it cannot set, and they hold a "
                f"{type(leaf).__name__}; write net = feedax.from_nnx(model) and "
                "feedax.fit(**net, train=...)"
            )


def _mode(parameters: Mapping[str, Any], train: bool) -> dict[str, bool]:
    """The arguments that tell a call with these parameters whether it is training."""
    told = {name: train for name in _WHERE_TRAINED if name in parameters}
    return told | {name: not train for name in _WHERE_NOT_TRAINED if name in parameters}


def _restarted(streams: PyTree, key: Array) -> PyTree:
    """Random streams, `key`'s own for each, none of its numbers drawn yet."""
    leaves, structure = jax.tree.flatten(streams)

    def start(i: int, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(leaf)  # how many numbers were drawn
        own = jax.random.fold_in(key, i)
        return jax.random.split(own, leaf.shape) if leaf.shape else own

    return jax.tree.unflatten(structure, [start(i, leaf) for i, leaf in enumerate(leaves)])


def _refuse_one_example(who: str) -> None:
    """Of one example a batch norm would take statistics without a word."""
    try:
        jax.lax.axis_size("batch")
    except NameError:
        return
    raise ModelError(
        f"{who}: the model must be given whole batches, and it was given one example under vmap; "
        "write feedax.fit(**net, train=...), or give batched=True"
    )


def _why(module: Any, error: Exception, told: bool) -> str:
    line = str(error).strip().split(" (https://")[0]
    if told:
        return f"from_linen: {type(module).__name__} must take a batch of the data, and: {line}"
    return (
        f"from_linen: {type(module).__name__}.__call__ must have a parameter train, deterministic "
        f"or use_running_average, and has none, so that evaluation fails: {line}; give it one"
    )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
