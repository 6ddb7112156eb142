"""A network of one example as a program that a page runs: `feedax/web/network.js` is its machine.

What depends on the parameters alone is computed here. The rest is written in few operations on flat
arrays: an elementwise function, a product of matrices, a reduction, a concatenation, padding, and
picking elements. A convolution is padding, picking (every window's elements side by side) and a
product; pooling is padding, picking and a reduction.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from feedax.errors import ProgramError, reason
from feedax.feed import pad
from feedax.train.equations import Equation, Equations, Value, equations_of, needed
from feedax.train.evaluation import block_size
from feedax.train.predictions import softmax

CLOSE = 5e-4
"""How far probabilities may move where parameters are rounded to 16 bits."""

MANY = 1000
"""Numbers in a constant; one of fewer is not worth rounding."""

WHO = "network_program"


def network_program(
    predict: Callable[..., Any],
    params: Any,
    example: Any,
    *,
    state: Any = None,
    batched: bool = False,
    hyperparams: Mapping[str, float] | None = None,
    inputs: np.ndarray | None = None,
    outputs: np.ndarray | None = None,
    most_bytes: int | None = None,
) -> dict[str, Any]:
    """A network as plain JSON, for ``feedax.network(program)`` of a page.

    Args:
        predict, params, state, batched, hyperparams: as in `fit`.
        example: one example's input, an array of numbers; only its shape and dtype count.
        inputs: ``(examples, ...)``, on which the network is tried with each of its large constants
            rounded to whole numbers of 16 bits times a scale: of the size of float16, and some ten
            times as exact. Where all classes stay the same and all probabilities within 5e-4, that
            is what the page gets; otherwise, or without inputs, float32.
        outputs: ``(examples, classes)``, what predict returns of `inputs`, if that is known.
        most_bytes: of the program as JSON; None for no limit.

    Returns:
        ``constants`` (arrays as base64), ``equations`` in the order of their computation, and the
        numbers of the arrays that are the ``input`` and the ``output``.

    Raises:
        ProgramError: the network has an operation that a page does not know, or is too large.
        ModelError: predict cannot be applied to the example.

    >>> program = network_program(lambda w, x: jnp.tanh(w @ x), jnp.eye(2, 3), jnp.zeros(3))
    >>> [equation["op"] for equation in program["equations"]], len(program["constants"])
    (['dot', 'tanh'], 1)
    """
    traced = equations_of(
        predict, params, example, state=state, batched=batched, hyperparams=hyperparams, who=WHO
    )
    if len(traced.example) != 1 or len(traced.outputs) != 1:
        raise _error(
            "a network that runs in a page must take one array and return one",
            f"this one takes {len(traced.example)} and returns {len(traced.outputs)}",
        )
    folded = _folded(traced)
    is_rounded = inputs is not None and _can_be_rounded(folded, inputs, outputs)
    program = _Writer(folded, is_rounded).program()
    size = sum(len(constant["data"]) for constant in program["constants"])
    size += 100 * len(program["equations"])
    if most_bytes is not None and size > most_bytes:
        raise _error(
            f"a network that runs in a page must take at most {most_bytes / 1e6:.3g} MB of it",
            f"this one takes {size / 1e6:.3g} MB",
        )
    return program


def _error(rule: str, found: str) -> ProgramError:
    return ProgramError(
        who=WHO, rule=rule, found=found, remedy="let feedax show run it on this machine"
    )


@dataclass(frozen=True)
class _Folded:
    """A network without what could be computed before.

    Attributes:
        known: the arrays that are known.
        equations: the others, in the order of their computation.
    """

    example: Value
    known: dict[Value, Any]
    equations: list[Equation]
    output: Value

    def run(self, constants: Mapping[Value, Any], x: Any) -> Any:
        """The prediction of one example, with these constants."""
        found = {**constants, self.example: x}
        for equation in self.equations:
            inputs = [found[value] for value in equation.inputs]
            found.update(zip(equation.outputs, equation.evaluate(inputs), strict=True))
        return found[self.output]

    def constants(self) -> dict[Value, Any]:
        """The known arrays that the equations read."""
        read = {value: None for equation in self.equations for value in equation.inputs}
        return {value: self.known[value] for value in read if value in self.known}


def _folded(traced: Equations) -> _Folded:
    known = {value: leaf for value, (_, leaf) in traced.params.items()} | traced.constants
    rest = []
    for equation in needed(traced.equations, traced.outputs):
        if all(value in known for value in equation.inputs):
            try:
                found = equation.evaluate([known[value] for value in equation.inputs])
            except Exception as error:
                raise _unknown(equation.name, reason(error)) from error
            known.update(zip(equation.outputs, found, strict=True))
        else:
            rest.append(equation)
    return _Folded(traced.example[0], known, rest, traced.outputs[0])


def _can_be_rounded(folded: _Folded, inputs: np.ndarray, outputs: np.ndarray | None) -> bool:
    """Whether 16 bits leave the classes as they are, and the probabilities nearly so."""
    shape = folded.output.shape
    if len(shape) != 1 or shape[0] < 2 or not len(inputs):
        return False
    # Compiled with the constants as arguments: as constants, XLA would take long over them.
    exact = folded.constants()

    @jax.jit
    def run(arrays: list[Any], rows: Any) -> Any:
        constants = dict(zip(exact, arrays, strict=True))
        return jax.vmap(lambda x: folded.run(constants, x))(rows)

    rounded = [_rounded(array) for array in exact.values()]
    # Blocks of one size, so that there is one compilation.
    size = -(-len(inputs) // -(-len(inputs) // block_size([inputs])))
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        count, rows = len(part), pad(np.asarray(part, folded.example.dtype), len(part), size)
        if outputs is None:
            before = np.asarray(run(list(exact.values()), rows))[:count]
        else:
            before = outputs[start : start + count]
        after = np.asarray(run(rounded, rows))[:count]
        if not np.isfinite(after).all() or (before.argmax(-1) != after.argmax(-1)).any():
            return False
        if np.abs(softmax(before) - softmax(after)).max() > CLOSE:
            return False
    return True


def _is_large(array: Any) -> bool:
    return (
        bool(jnp.issubdtype(jnp.result_type(array), jnp.floating))
        and np.size(array) > MANY
        and bool(np.isfinite(array).all())
    )


def _rounded(array: Any) -> Any:
    if not _is_large(array):
        return array
    numbers, scale = _numbers_and_scale(np.asarray(array))
    return (numbers * scale).astype(array.dtype)


def _numbers_and_scale(array: np.ndarray) -> tuple[np.ndarray, float]:
    """int16 numbers and what to multiply them with."""
    scale = float(np.abs(array).max()) / 32767 or 1.0
    return np.rint(array / scale).astype(np.int16), scale


def _unknown(name: str, why: str = "") -> ProgramError:
    return _error(
        "a network that runs in a page must be made of operations that a page knows",
        f"this one has {name}{f' ({why})' if why else ''}",
    )


@dataclass(frozen=True)
class _Ref:
    """An array of the page, by its number; there it is flat, so its shape is only known here."""

    number: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Operand = np.ndarray | _Ref

_UNARY = {
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "cos", "cosh"),
    *("erf", "erfc", "exp", "exp2", "expm1", "floor", "is_finite", "log", "log1p", "logistic"),
    *("neg", "not", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
}
_BINARY = {
    *("add", "and", "atan2", "div", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne"),
    *("or", "pow", "rem", "sub", "xor"),
}
_ELEMENTWISE = _UNARY | _BINARY | {"clamp", "select_n"}
_ANY_DTYPE = {"eq", "ge", "gt", "le", "lt", "max", "min", "ne", "clamp", "select_n"}
"""Elementwise functions that are the same on whole numbers as on float32."""

_MOVES = {
    *("broadcast_in_dim", "dynamic_slice", "expand_dims", "gather", "reshape", "rev", "slice"),
    *("split", "squeeze", "tile", "transpose", "unstack"),
}
"""Primitives whose outputs are elements of their first input."""

_REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_and": "min",
    "reduce_or": "max",
    "argmax": "argmax",
    "argmin": "argmin",
}
_WINDOWS = {
    "reduce_window_sum": ("sum", 0.0),
    "reduce_window_max": ("max", -math.inf),
    "reduce_window_min": ("min", math.inf),
}


class _Writer:
    """Writes the operations of a page."""

    def __init__(self, folded: _Folded, is_rounded: bool) -> None:
        self._folded, self._is_rounded = folded, is_rounded
        self._constants: list[dict[str, Any]] = []
        self._equations: list[dict[str, Any]] = []
        self._count = 0
        self._found: dict[Value, Operand] = {folded.example: self._new(folded.example.shape)}
        self._written: dict[bytes, _Ref] = {}

    def program(self) -> dict[str, Any]:
        folded = self._folded
        for equation in folded.equations:
            self._found.update(zip(equation.outputs, self._outputs(equation), strict=True))
        output = self._ref(self._operand(folded.output))
        return {
            "input": 0,
            "size": math.prod(folded.example.shape),
            "constants": self._constants,
            "equations": self._equations,
            "output": output.number,
        }

    def _new(self, shape: Sequence[int]) -> _Ref:
        self._count += 1
        return _Ref(self._count - 1, tuple(shape))

    def _operand(self, value: Value) -> Operand:
        if value not in self._found:
            self._found[value] = np.asarray(self._folded.known[value])
        return self._found[value]

    def _outputs(self, equation: Equation) -> list[Operand]:
        name, given = equation.name, equation.parameters
        for value in (*equation.inputs, *equation.outputs):
            is_known = getattr(value.dtype, "kind", "") in tuple("fiub")
            if not is_known or value.dtype == jnp.float16:
                raise _unknown(f"numbers of {value.dtype}")
        operands = [self._operand(value) for value in equation.inputs]
        first, out = operands[0], equation.outputs[0]
        if name in _MOVES:
            return self._move_of_jax(equation, operands)
        if name in _ELEMENTWISE:
            self._refuse_whole_numbers(equation)
            return [self._elementwise(name, operands, out.shape)]
        if name in _REDUCTIONS:
            if out.dtype.kind in "iu" and name in ("reduce_sum", "reduce_prod"):
                raise _unknown(f"{name} of {out.dtype}")
            return [self._reduce(_REDUCTIONS[name], first, given["axes"], out.shape)]
        if name in _WINDOWS:
            return [self._reduce_windows(*_WINDOWS[name], first, given, out.shape)]
        match name:
            case "convert_element_type":
                return [self._converted(first, equation.inputs[0].dtype, out)]
            case "integer_pow":
                exponent = _number(given["y"])
                return [self._elementwise("pow", [first, exponent], out.shape)]
            case "round":
                kind = "round_even" if int(given["rounding_method"]) else "round"
                return [self._elementwise(kind, operands, out.shape)]
            case "concatenate":
                sizes = [math.prod(one.shape[given["dimension"] :]) for one in operands]
                return [self._emit("concatenate", operands, out.shape, sizes=sizes)]
            case "stack":
                sizes = [math.prod(one.shape[given["axis"] :]) for one in operands]
                return [self._emit("concatenate", operands, out.shape, sizes=sizes)]
            case "pad":
                return [self._padded(first, operands[1], given["padding_config"])]
            case "dot_general":
                left, right = operands
                return [self._dot(left, right, given["dimension_numbers"], out.shape)]
            case "conv_general_dilated" if given["batch_group_count"] == 1:
                image, kernel = operands
                return [self._convolution(image, kernel, given)]
        raise _unknown(name)

    def _refuse_whole_numbers(self, equation: Equation) -> None:
        """Float32 does not overflow as they do."""
        dtype = equation.inputs[0].dtype
        if equation.name in _ANY_DTYPE or dtype.kind == "f":
            return
        if dtype.kind == "b" and equation.name in ("and", "or", "not", "xor"):
            return
        raise _unknown(f"{equation.name} of {dtype}")

    def _emit(self, op: str, inputs: Sequence[Operand], shape: Sequence[int], **more: Any) -> _Ref:
        numbers = [self._ref(one).number for one in inputs]
        out = self._new(shape)
        self._equations.append(
            {"op": op, "inputs": numbers, "output": out.number, "size": out.size, **more}
        )
        return out

    def _ref(self, operand: Operand) -> _Ref:
        """An array of the page; a known one is written among its constants."""
        if isinstance(operand, _Ref):
            return operand
        array, shape = operand, operand.shape
        for axis in range(array.ndim):  # what is the same along an axis is written once
            first = array.take([0], axis) if array.shape[axis] else array
            if array.shape[axis] > 1 and (array == first).all():
                array = first
        key = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        if key not in self._written:
            self._written[key] = self._new(array.shape)
            if self._is_rounded and _is_large(operand):
                array, scale = _numbers_and_scale(array)
            else:
                array, scale = array.astype(np.int32 if array.dtype.kind in "iu" else np.float32), 1
            self._constants.append(
                {
                    "number": self._written[key].number,
                    "dtype": array.dtype.name,
                    "scale": scale,
                    "data": base64.b64encode(array.tobytes()).decode(),
                }
            )
        found = self._written[key]
        return self._ref(self._moved(found, lambda a: np.broadcast_to(a, shape)))

    def _moved(self, operand: Operand, move: Callable[[np.ndarray], Any]) -> Operand:
        """What a function that only moves elements makes of an array."""
        if isinstance(operand, np.ndarray):
            return np.ascontiguousarray(move(operand)).reshape(np.shape(move(operand)))
        source = np.arange(operand.size, dtype=np.int32).reshape(operand.shape)
        indices = np.asarray(move(source))
        if indices.size == operand.size and (indices.ravel() == source.ravel()).all():
            return _Ref(operand.number, indices.shape)
        if (strides := _strides(indices)) is not None:
            lengths, offset = list(indices.shape), int(indices.flat[0])
            return self._emit(
                "view", [operand], indices.shape, offset=offset, lengths=lengths, strides=strides
            )
        return self._emit("take", [operand, indices], indices.shape)

    def _move_of_jax(self, equation: Equation, operands: list[Operand]) -> list[Operand]:
        others = [one for one in operands[1:] if isinstance(one, np.ndarray)]
        if len(others) < len(operands) - 1:
            raise _unknown(f"{equation.name} at places that depend on the example")

        def move(i: int) -> Callable[[np.ndarray], Any]:
            return lambda a: np.asarray(equation.evaluate([jnp.asarray(a), *others])[i])

        return [self._moved(operands[0], move(i)) for i in range(len(equation.outputs))]

    def _elementwise(self, op: str, operands: list[Operand], shape: tuple[int, ...]) -> _Ref:
        # A page's function takes arrays of the output's size, and single numbers.
        spread = [
            one if one.size == 1 else self._moved(one, lambda a: np.broadcast_to(a, shape))
            for one in operands
        ]
        return self._emit(op, spread, shape)

    def _converted(self, operand: Operand, old: Any, out: Value) -> Operand:
        if out.dtype.kind == "b" and old.kind != "b":
            return self._elementwise("ne", [operand, _number(0)], out.shape)
        if out.dtype.kind in "iu" and old.kind == "f":
            return self._elementwise("trunc", [operand], out.shape)
        if out.dtype.kind in "iu" and old.kind in "iu" and not np.can_cast(old, out.dtype):
            raise _unknown(f"a conversion of {old} to {out.dtype}")
        return operand

    def _reduce(
        self, op: str, operand: Operand, axes: Sequence[int], shape: tuple[int, ...]
    ) -> _Ref:
        last = self._moved(operand, lambda a: np.moveaxis(a, axes, range(-len(axes), 0)))
        return self._emit(op, [last], shape)

    def _reduce_windows(
        self,
        op: str,
        start: float,
        operand: Operand,
        given: Mapping[str, Any],
        shape: tuple[int, ...],
    ) -> _Ref:
        config = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(given["padding"], given["base_dilation"], strict=True)
        ]
        padded = self._padded(operand, _number(start), config)
        windows = self._moved(
            padded,
            lambda a: _windows(
                a, given["window_dimensions"], given["window_strides"], given["window_dilation"]
            ),
        )
        return self._emit(op, [windows], shape)

    def _padded(
        self, operand: Operand, value: Operand, config: Sequence[tuple[int, int, int]]
    ) -> Operand:
        if any(max(one) > 0 for one in config):
            shape = [
                max(low, 0) + max(n + (n - 1) * inner, 0) + max(high, 0)
                for n, (low, high, inner) in zip(operand.shape, config, strict=True)
            ]
            steps = np.cumprod([1, *shape[:0:-1]])[::-1].tolist()
            offset = sum(
                max(low, 0) * step for (low, _, _), step in zip(config, steps, strict=True)
            )
            strides = [
                (inner + 1) * step for (_, _, inner), step in zip(config, steps, strict=True)
            ]
            operand = self._emit(
                "pad", [operand, value], shape,
                offset=offset, lengths=list(operand.shape), strides=strides,
            )  # fmt: skip
        cut = tuple(slice(max(-low, 0), -max(-high, 0) or None) for low, high, _ in config)
        return self._moved(operand, lambda a: a[cut])

    def _dot(self, left: Operand, right: Operand, numbers: Any, shape: tuple[int, ...]) -> _Ref:
        (contracted, batch), matrices, free = numbers, [], []
        for one, summed, kept in zip((left, right), contracted, batch, strict=True):
            others = [i for i in range(len(one.shape)) if i not in (*summed, *kept)]
            order = (*kept, *others, *summed)
            matrices.append(self._moved(one, lambda a: np.transpose(a, order)))  # noqa: B023
            free.append(math.prod(one.shape[i] for i in others))
        summed = math.prod(left.shape[i] for i in contracted[0])
        return self._emit("dot", matrices, shape, rows=free[0], columns=free[1], terms=summed)

    def _convolution(self, image: Operand, kernel: Operand, given: Mapping[str, Any]) -> Operand:
        numbers, groups = given["dimension_numbers"], given["feature_group_count"]
        image = self._moved(image, lambda a: np.transpose(a, numbers.lhs_spec))
        kernel = self._moved(kernel, lambda a: np.transpose(a, numbers.rhs_spec))
        config = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(given["padding"], given["lhs_dilation"], strict=True)
        ]
        padded = self._padded(image, _number(0), [(0, 0, 0), (0, 0, 0), *config])
        sides = kernel.shape[2:]

        def windows(a: np.ndarray) -> np.ndarray:
            """``(groups, images, *sides, channels, *window)``."""
            a = a.reshape(a.shape[0], groups, -1, *a.shape[2:])
            one = (1,) * 3
            a = _windows(a, one + sides, one + given["window_strides"], one + given["rhs_dilation"])
            a = a.reshape(*a.shape[: 3 + len(sides)], *sides)
            return np.moveaxis(np.moveaxis(a, 2, 2 + len(sides)), 1, 0)

        seen = self._moved(padded, windows)
        places, features = seen.shape[1 : 2 + len(sides)], kernel.shape[0] // groups
        found: Operand = self._emit(
            "dot",
            [kernel, seen],
            (groups, features, *places),
            rows=features,
            columns=math.prod(places),
            terms=math.prod(kernel.shape[1:]),
        )
        back = np.argsort(numbers.out_spec)
        return self._moved(
            found,
            lambda a: np.transpose(np.moveaxis(a, 2, 0).reshape(places[0], -1, *places[1:]), back),
        )


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _windows(
    a: np.ndarray, sides: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    """All windows of an array: ``(*places, *sides)``."""
    spans = [(side - 1) * step + 1 for side, step in zip(sides, dilation, strict=True)]
    every = sliding_window_view(a, spans)
    return every[tuple(slice(None, None, step) for step in (*strides, *dilation))]


def _strides(indices: np.ndarray) -> list[int] | None:
    """Steps along each axis, where the places of all elements follow from them."""
    if not indices.size:
        return None
    offset, strides = int(indices.flat[0]), []
    expected = np.full((), offset)
    for axis, length in enumerate(indices.shape):
        corner = tuple(int(i == axis) for i in range(indices.ndim))
        stride = int(indices[corner]) - offset if length > 1 else 0
        strides.append(stride)
        steps = stride * np.arange(length).reshape(-1, *[1] * (indices.ndim - axis - 1))
        expected = expected + steps
    return strides if (indices == expected).all() else None
