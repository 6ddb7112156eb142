"""The table of a network's layers: parameters, shapes, and the work for one example."""

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from feedax.train.equations import Equation, Value, equations_of, needed, programs_in

WITHOUT_PARAMETERS = "(without parameters)"
"""The row of products of matrices in which no layer's parameters take part, as in attention."""


@dataclass(frozen=True)
class Layer:
    """A row of `ModelSummary`.

    Attributes:
        name: the path in params.
        shapes: of its parameters, by name.
        output: the shape of what the layer makes of one example; None where nothing shows it.
        parameters: how many numbers are trained in it, each counted once in a network.
        flops: floating point operations for one example in products of matrices and
            convolutions, two for each product of numbers and its sum.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    output: tuple[int, ...] | None
    parameters: int
    flops: int


@dataclass(frozen=True)
class ModelSummary:
    """A network's layers, in the order in which they are used; it prints as a table.

    Attributes:
        rows: the layers.
    """

    rows: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < _TEXTS else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body, foot = (
            "".join(
                f'<{tag} style="text-align: {"left" if i < _TEXTS else "right"}">'
                f"{html.escape(cell)}</{tag}>"
                for i, cell in enumerate(row)
            )
            for tag, row in zip(["th", *["td"] * len(self.rows), "th"], self._cells(), strict=True)
        )
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
            f"<tfoot><tr>{foot}</tr></tfoot></table>"
        )

    def _cells(self) -> list[list[str]]:
        head = ["layer", "shapes", "output", "parameters", "FLOPs"]
        body = [
            [
                row.name,
                # The parts of a tuple have no names worth telling.
                ", ".join(
                    _spoken(shape) if name.isdigit() else f"{name} {_spoken(shape)}"
                    for name, shape in row.shapes.items()
                ),
                "" if row.output is None else _spoken(row.output),
                f"{row.parameters:,}",
                f"{row.flops:,}",
            ]
            for row in self.rows
        ]
        return [head, *body, ["total", "", "", f"{self.parameters:,}", f"{self.flops:,}"]]


_TEXTS = 3
"""The first columns of the table are text, and the others numbers."""


def summary(
    predict: Callable[..., Any],
    params: Any,
    example: Any,
    *,
    state: Any = None,
    batched: bool = False,
    hyperparams: Mapping[str, float] | None = None,
) -> ModelSummary:
    """The table of a model's layers, as they are for one example in evaluation.

    A layer is what lies together in params: its weights and its bias. Nothing is computed. The
    work of ``scan`` is counted with its length, that of ``while_loop`` for one turn, and of
    ``cond`` the larger one.

    Args:
        predict, params, state, batched, hyperparams: as in `fit`.
        example: one example's input, an array or a tree of them; only shapes and dtypes count.

    Raises:
        ModelError: predict cannot be applied to the example.

    >>> from feedax import init_mlp, predict
    >>> params = init_mlp([784, 512, 10], jax.random.key(0))
    >>> summary(predict, params, jax.numpy.zeros(784))
    layer  shapes          output  parameters    FLOPs
    --------------------------------------------------
    0      512 x 784, 512  512        401,920  802,816
    1      10 x 512, 10    10           5,130   10,240
    --------------------------------------------------
    total                             407,050  813,056
    """
    traced = equations_of(
        predict,
        params,
        example,
        state=state,
        batched=batched,
        hyperparams=hyperparams,
        who="summary",
    )
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    numbers: dict[str, int] = {}
    origin: dict[Value, str] = {}
    counted = set[int]()
    for value, (path, leaf) in traced.params.items():
        layer, name = _layer_of(path)
        shapes.setdefault(layer, {})[name] = value.shape
        # An array that lies in two places is one.
        numbers[layer] = numbers.get(layer, 0) + (id(leaf) not in counted) * math.prod(value.shape)
        counted.add(id(leaf))
        origin[value] = layer

    flops: dict[str, int] = {}  # its order is that of use
    outputs: dict[str, tuple[int, ...]] = {}
    known = {*traced.params, *traced.constants}
    for equation in needed(traced.equations, traced.outputs):
        layers = [origin[value] for value in equation.inputs if value in origin]
        work = _flops(equation)
        if layers or work:
            layer = layers[-1] if layers else WITHOUT_PARAMETERS
            flops[layer] = flops.get(layer, 0) + work
        if all(value in known for value in equation.inputs):
            # Still parameters: scaled ones, transposed ones.
            known.update(equation.outputs)
            origin |= dict.fromkeys(equation.outputs, layers[-1]) if layers else {}
        elif layers:
            shape = equation.outputs[0].shape
            outputs[layers[-1]] = shape[1:] if batched else shape
    return ModelSummary(
        tuple(
            Layer(
                layer,
                shapes.get(layer, {}),
                outputs.get(layer),
                numbers.get(layer, 0),
                flops.get(layer, 0),
            )
            for layer in dict.fromkeys([*flops, *shapes])
        )
    )


def _layer_of(path: Any) -> tuple[str, str]:
    """The names of a layer and of a parameter in it. An array that lies alone is a layer."""
    name = jax.tree_util.keystr(path[-1:], simple=True) if path else "params"
    layer = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
    return layer or name, name


def _spoken(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _flops(equation: Equation) -> int:
    """Two for each product of two numbers that is summed up."""
    if equation.name == "dot_general":
        (contracted, _), _ = equation.parameters["dimension_numbers"]
        summed = math.prod(equation.inputs[0].shape[axis] for axis in contracted)
    elif equation.name == "conv_general_dilated":
        kernel = equation.parameters["dimension_numbers"].rhs_spec  # its axis of outputs is first
        summed = math.prod(equation.inputs[1].shape[axis] for axis in kernel[1:])
    else:
        inner = [sum(map(_flops, equations)) for equations in programs_in(equation)]
        if equation.name == "cond":
            return max(inner)
        return equation.parameters.get("length", 1) * sum(inner) if inner else 0
    return 2 * summed * math.prod(equation.outputs[0].shape)
