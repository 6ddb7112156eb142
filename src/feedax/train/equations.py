"""What a model computes of one example: its equations in a row, as JAX traces them.

Calls are inlined, so that whoever reads them (`feedax.train.page_program`, `feedax.train.layers`)
meets arithmetic alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive
from jax.typing import DTypeLike

from feedax.errors import ModelError, reason
from feedax.feed import scalar
from feedax.train.model import Model, partition, refuse_no_function

_CALLS = {
    "call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
"""Primitives that are no arithmetic but a call, and which of their parameters is called."""

_SAME = {
    "copy",
    "copy_p",
    "device_put",
    "name",
    "optimization_barrier",
    "pbroadcast",
    "pmax",
    "pmin",
    "psum",
    "pvary",
    "sharding_constraint",
    "stop_gradient",
}
"""Primitives that leave the values of one example as they are; there is nothing to sum over."""


@dataclass(frozen=True, eq=False)
class Value:
    """An array that is computed, or given."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True, eq=False)
class Equation:
    """One primitive of JAX on some values."""

    primitive: Primitive
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.primitive.name

    def evaluate(self, inputs: list[Any]) -> list[Any]:
        """The arrays of the outputs, of those of the inputs."""
        bound = self.primitive.get_bind_params(dict(self.parameters))
        # Versions of JAX give functions apart from the other parameters, or do not.
        functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
        found = self.primitive.bind(*functions, *inputs, **parameters)
        return list(found) if self.primitive.multiple_results else [found]


@dataclass(frozen=True)
class Equations:
    """All that a model computes of one example.

    Attributes:
        params: the trained parameters, with their paths, in the order of the tree.
        example: the leaves of the example.
        constants: the arrays that are known besides: the model's state, numbers in its code.
        equations: in the order in which they can be computed.
        outputs: the leaves of the prediction.
    """

    params: dict[Value, tuple[Any, Any]]
    example: list[Value]
    constants: dict[Value, Any]
    equations: list[Equation]
    outputs: list[Value]


def equations_of(
    predict: Callable[..., Any],
    params: Any,
    example: Any,
    *,
    state: Any = None,
    batched: bool = False,
    hyperparams: Mapping[str, Any] | None = None,
    who: str,
) -> Equations:
    """Trace a model on one example, in evaluation.

    Args:
        predict, params, state, batched, hyperparams: as in `fit`.
        example: one example's input, an array or a tree of them; only shapes and dtypes count.
        who: the function that speaks in an error.

    Raises:
        ModelError: the model cannot be applied to that example.
    """
    refuse_no_function(predict, params, who)
    trained, static = partition(params)
    model = Model(predict, batched, state is not None, static)
    scalars = {name: scalar(value) for name, value in (hyperparams or {}).items()}
    of_one = jax.tree.map(_shape, example)

    def call(trained: Any, state: Any, x: Any) -> Any:
        if batched:
            x = jax.tree.map(lambda leaf: leaf[None], x)
        prediction, _ = model.call(trained, state, x, jax.random.key(0), False, scalars)
        return jax.tree.map(lambda leaf: leaf[0], prediction) if batched else prediction

    try:
        # What a model averages over the examples of a batch, it averages over this one.
        axes = None if batched else [("batch", 1)]
        closed = jax.make_jaxpr(call, axis_env=axes)(trained, state, of_one)
    except ModelError:
        raise
    except Exception as error:  # a model may fail in any way
        shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(of_one)]
        raise ModelError(
            who=who,
            rule="predict must take params and the example",
            found=f"it fails on an example of {', '.join(shapes)} ({reason(error)})",
            remedy="give one example of the data, without a batch's axis, and state= and "
            "batched= as in fit",
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(trained)
    states = jax.tree.leaves(state)
    reader = _Reader()
    given = [reader.value(var) for var in closed.jaxpr.invars]
    first = len(leaves) + len(states)
    reader.constants |= zip(given[len(leaves) : first], states, strict=True)
    outputs = reader.read(closed, given)
    return Equations(
        dict(zip(given[: len(leaves)], leaves, strict=True)),
        given[first:],
        reader.constants,
        reader.equations,
        outputs,
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype: DTypeLike = jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


class _Reader:
    """Writes the equations of nested programs in a row."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}

    def value(self, var: Any) -> Value:
        return Value(tuple(var.aval.shape), var.aval.dtype)

    def constant(self, var: Any, array: Any) -> Value:
        value = self.value(var)
        self.constants[value] = array
        return value

    def read(self, closed: ClosedJaxpr | Jaxpr, given: list[Value]) -> list[Value]:
        """Read a program whose inputs are these values; its outputs."""
        if isinstance(closed, ClosedJaxpr):
            jaxpr, consts = closed.jaxpr, closed.consts
        else:
            jaxpr, consts = closed, []
        known: dict[Any, Value] = dict(zip(jaxpr.invars, given, strict=True))
        for var, array in zip(jaxpr.constvars, consts, strict=True):
            known[var] = self.constant(var, array)

        def found(atom: Any) -> Value:
            return self.constant(atom, atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, [found(atom) for atom in equation.invars]
            if name in _CALLS:
                outputs = self.read(equation.params[_CALLS[name]], inputs)
            elif name in _SAME:
                outputs = inputs
            else:
                outputs = [self.value(var) for var in equation.outvars]
                self.equations.append(
                    Equation(equation.primitive, tuple(inputs), tuple(outputs), equation.params)
                )
            known.update(zip(equation.outvars, outputs, strict=True))
        return [found(atom) for atom in jaxpr.outvars]


def programs_in(equation: Equation) -> list[list[Equation]]:
    """The equations of each program that a loop or a choice runs."""
    found = []
    for parameter in equation.parameters.values():
        for program in parameter if isinstance(parameter, tuple | list) else [parameter]:
            if isinstance(program, ClosedJaxpr | Jaxpr):
                reader = _Reader()
                jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
                reader.read(program, [reader.value(var) for var in jaxpr.invars])
                found.append(reader.equations)
    return found


def needed(equations: list[Equation], outputs: list[Value]) -> list[Equation]:
    """Those of the equations that the outputs depend on."""
    wanted, kept = set(outputs), list[Equation]()
    for equation in reversed(equations):
        if wanted & set(equation.outputs):
            wanted |= set(equation.inputs)
            kept.append(equation)
    return kept[::-1]
