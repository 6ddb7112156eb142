"""The network of the command line: the tutorial's MLP on examples of any shape."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from feedax.cli.flags import HIDDEN, ModelFlags
from feedax.errors import CheckpointError, ModelError, shown
from feedax.report.run_folder import RunFolder
from feedax.storage.safetensors_file import arrays_by_name
from feedax.storage.snapshot import Snapshot
from feedax.train import Checkpoints, init_network_params, relu
from feedax.train import predict as predict_flat
from feedax.train.checkpoints import most_bytes

if TYPE_CHECKING:  # it loads PyTorch, which `feedax predict` does without
    from feedax.cli.examples import Examples


def predict(params: Any, example: ArrayLike, *, divisor: float = 1) -> jax.Array:
    """Log-probabilities of the classes for one example of any shape.

    Args:
        params: the network, see `feedax.train.init_network_params`.
        example: one example.
        divisor: of every input; 255 for pixels that shall lie in 0 to 1.
    """
    return predict_flat(params, _flat(example, divisor))


def predict_with_dropout(
    params: Any,
    example: ArrayLike,
    key: jax.Array,
    train: bool,
    dropout: ArrayLike,
    *,
    divisor: float = 1,
) -> jax.Array:
    """As `predict`, with a share of every hidden layer's outputs left out in training.

    The others are divided by the share that is kept, so that their expectation stays
    (Srivastava et al. 2014, "Dropout", in the form called inverted).

    Args:
        params: the network.
        example: one example.
        key: a random key of the example's own.
        train: whether the network is trained; otherwise nothing is left out.
        dropout: the share, from 0 to below 1.
        divisor: of every input.
    """
    if not train:
        return predict(params, example, divisor=divisor)
    activations = _flat(example, divisor)
    for (w, b), layer_key in zip(params[:-1], jax.random.split(key, len(params)), strict=False):
        outputs = relu(jnp.dot(w, activations) + b)
        kept = jax.random.bernoulli(layer_key, 1 - dropout, outputs.shape)
        scaled = outputs / jnp.asarray(1 - dropout, outputs.dtype)
        activations = jnp.where(kept, scaled, 0)
    return predict_flat(params[-1:], activations)


def build_predict(flags: ModelFlags) -> Callable[..., jax.Array]:
    """The function that `fit` and `evaluate` get: it takes a key only where there is dropout."""
    function = predict_with_dropout if flags.dropout else predict
    return partial(function, divisor=255) if flags.scale_pixels else function


def _flat(example: ArrayLike, divisor: float) -> jax.Array:
    flat = jnp.ravel(example)
    return flat if divisor == 1 else flat / divisor


def resolve_layers(
    flags: ModelFlags, examples: "Examples", other: RunFolder | None
) -> tuple[int, ...]:
    """The sizes of all layers, checked against the examples.

    Args:
        flags: what was asked for.
        examples: the examples.
        other: the run whose parameters this one starts from, or None.

    Raises:
        ModelError: the first or the last size does not fit the examples.
    """
    if flags.layers is not None:
        layers = flags.layers
    elif flags.hidden is None and other is not None:
        layers = tuple(other.setting("layers"))
    else:
        hidden = HIDDEN if flags.hidden is None else flags.hidden
        return (examples.values, *hidden, examples.class_count)
    check_layers(layers, examples)
    return layers


def check_layers(layers: Sequence[int], examples: "Examples") -> None:
    """Refuse layers whose ends do not fit the examples.

    Raises:
        ModelError: they do not fit.
    """
    values = examples.values
    if layers[0] != values:
        raise ModelError(
            f"the network: the first layer must have the {values} values of one example of "
            f"{examples.flags.dataset}, and it has {layers[0]}; start --layers with {values}, or "
            f"give --hidden sizes only"
        )
    names = examples.class_names
    if names is not None and layers[-1] < len(names):
        raise ModelError(
            f"the network: the last layer must have an output for each of the {len(names)} classes "
            f"of {examples.flags.dataset}, and it has {layers[-1]}; end --layers with "
            f"{len(names)}, or give --hidden sizes only"
        )


def initial_params(layers: Sequence[int], seed: int, initialisation: str = "tutorial") -> Any:
    """The parameters that training starts from.

    Args:
        layers: the sizes of all layers.
        seed: of the random numbers.
        initialisation: ``"tutorial"`` for those of the tutorial, for its sizes and seed 0, or
            ``"he"`` for those of `he_params`.
    """
    if initialisation == "he":
        return _he_params(tuple(layers), jax.random.key(seed))
    # The tutorial's table was made with JAX's old random bits; they hold for this block only.
    with jax.threefry_partitionable(False):
        # One program, not one for each array.
        return _init_network_params(tuple(layers), jax.random.PRNGKey(seed))


def he_params(layers: Sequence[int], key: jax.Array) -> Any:
    """Parameters under which a layer of ReLU keeps the size of what goes through it.

    Weights are drawn from a normal distribution of standard deviation sqrt(2 / inputs), biases are
    0 (He et al. 2015, "Delving Deep into Rectifiers", section 2.2).

    Args:
        layers: the sizes of all layers.
        key: a random key.

    Returns:
        One pair of weights float32 `(outputs, inputs)` and biases float32 `(outputs,)` per layer.
    """
    sizes = list(itertools.pairwise(layers))
    keys = jax.random.split(key, len(sizes))
    return [
        ((2 / inputs) ** 0.5 * jax.random.normal(one, (outputs, inputs)), jnp.zeros(outputs))
        for one, (inputs, outputs) in zip(keys, sizes, strict=True)
    ]


_init_network_params = jax.jit(init_network_params, static_argnums=0)
_he_params = jax.jit(he_params, static_argnums=0)


def load_params(run: RunFolder, layers: Sequence[int]) -> Any:
    """The parameters of a run whose network has these layers.

    Raises:
        RunFolderError: there are none, or they are of other layers.
    """
    return run.load_params(like=_shapes(layers))


def are_saved(checkpoints: Checkpoints, layers: Sequence[int]) -> bool:
    """Whether there is a checkpoint to go on from, of a network with these layers.

    It is looked at before the parameters are drawn: a folder can ask for any number of them.

    Raises:
        CheckpointError: it is of other layers.
    """
    found = checkpoints.newest(most_bytes(_shapes(layers)), says=False)
    if found is not None:
        refuse_other_layers(found.arrays, layers, found.path)
    return found is not None


def refuse_other_networks(checkpoints: Checkpoints, layers: Sequence[int], count: int) -> None:
    """Refuse saved networks of a sweep that have other layers; one of them tells.

    Args:
        checkpoints: of the sweep.
        layers: of its networks.
        count: how many it has.

    Raises:
        CheckpointError: they have.
    """
    most = most_bytes(_shapes(layers))
    for name in checkpoints.names():
        arrays = None
        if name.endswith(".safetensors"):
            with contextlib.suppress(CheckpointError):  # it is trained again, which is said then
                arrays, _ = checkpoints.read(name, most) or (None, {})
        elif name.startswith("."):
            continue  # half a file
        elif found := checkpoints.within(name).newest(count * most, says=False):
            arrays = found.arrays
        if arrays is not None:
            return refuse_other_layers(arrays, layers, checkpoints.folder / name)


def refuse_other_layers(arrays: Snapshot, layers: Sequence[int], path: Path) -> None:
    """Refuse saved arrays that are not those of a network, or of many, with these layers.

    Raises:
        CheckpointError: they are not.
    """
    shapes = arrays_by_name({"params": _shapes(layers)}, who="feedax")
    saved = {name.removeprefix("state."): array.shape for name, array in arrays.items()}
    for name, leaf in shapes.items():
        # A first axis is for many networks.
        if saved.get(name, ())[-leaf.ndim :] != leaf.shape:
            raise CheckpointError(
                f"feedax: {path} must hold a network with the layers {shown(list(layers))}, and "
                f"its {name} is {shown(saved.get(name))} in place of {leaf.shape}; go on with the "
                "folder as it was, or train again"
            )


def _shapes(layers: Sequence[int]) -> Any:
    """What stands for the parameters, without a number of them."""
    return [
        tuple(jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in (sizes, sizes[:1]))
        for inputs, outputs in itertools.pairwise(layers)
        for sizes in [(outputs, inputs)]
    ]
