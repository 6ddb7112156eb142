"""The network of the command line: the tutorial's MLP on examples of any shape."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from feedax.cli.flags import HIDDEN, ModelFlags
from feedax.errors import ModelError
from feedax.report.run_folder import RunFolder
from feedax.train import cross_entropy, init_network_params, tutorial_loss
from feedax.train import predict as predict_flat

if TYPE_CHECKING:  # it loads PyTorch, which `feedax predict` does without
    from feedax.cli.examples import Examples

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "tutorial": tutorial_loss,
    "cross_entropy": cross_entropy,
}


def predict(params: Any, example: Any) -> jax.Array:
    """Log-probabilities of the classes for one example of any shape."""
    return predict_flat(params, jnp.ravel(example))


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


def initial_params(layers: Sequence[int], seed: int) -> Any:
    """The parameters that the tutorial starts from, for the same sizes and seed 0."""
    # The tutorial's table was made with JAX's old random bits; they hold for this block only.
    with jax.threefry_partitionable(False):
        # One program, not one for each array.
        return _init_network_params(tuple(layers), jax.random.PRNGKey(seed))


_init_network_params = jax.jit(init_network_params, static_argnums=0)


def load_params(run: RunFolder, layers: Sequence[int]) -> Any:
    """The parameters of a run whose network has these layers.

    Raises:
        RunFolderError: there are none, or they are of other layers.
    """
    return run.load_params(like=jax.eval_shape(lambda: initial_params(layers, 0)))
