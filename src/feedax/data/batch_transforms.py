"""Transforms of one example, as functions of a whole batch in NumPy, equal to the bit.

A transform is known by its exact type and by what it is given: ``ToTensor`` does one thing to a
picture and another to an array. What is not known here has no batch form, and is never guessed.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from feedax.data.array_dataset import FlattenAndCast

Batch = Callable[[np.ndarray], np.ndarray]

_DTYPES = {
    getattr(torch, name): np.dtype(name)
    for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                 "float32", "float64")
}  # fmt: skip

V1, V2 = "torchvision.transforms", "torchvision.transforms.v2"

PICTURE, ARRAY, TENSOR, INT, FLOAT = "a PIL image", "an array", "a tensor", "an int", "a float"
"""What a transform is given for one example. A `tv_tensors.Image` is a tensor here."""


class NoArrayForm(Exception):
    """This dataset's batches cannot be gathered from arrays; the message says why."""


@dataclass(frozen=True)
class Stage:
    """Examples between two transforms."""

    kind: str  # what an example is: `PICTURE`, `ARRAY`, `TENSOR`, `INT` or `FLOAT`
    rows: np.ndarray  # a batch of no examples, `(0, ...)`: it has their dtype and shape
    own: bool = False  # the values are a copy, not the dataset's own memory


@dataclass(frozen=True)
class BatchTransform:
    """A transform of a whole batch."""

    steps: tuple[Batch, ...]  # applied one after the other to arrays `(examples, ...)`
    names: tuple[str, ...]  # of the transforms, for people
    identity: tuple[Any, ...]  # the objects and values that it was made from
    stage: Stage  # what it makes of an example

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # torch does not warn of infinities and NaNs
            for step in self.steps:
                batch = step(batch)
        return batch


def batch_transform(transform: Any, stage: Stage, what: str = "transform") -> BatchTransform:
    """The batch form of a transform that is given examples of this stage; None is no transform.

    Raises:
        NoArrayForm: it has none; says why.

    >>> form = batch_transform(FlattenAndCast(), Stage(ARRAY, np.empty((0, 2, 2), np.uint8)))
    >>> form(np.array([[[0, 255], [7, 1]]], np.uint8))
    array([[  0., 255.,   7.,   1.]], dtype=float32)
    """
    steps: list[Batch] = []
    names: list[str] = []
    identity: list[Any] = []
    # numpy_collate makes int64 of Python's int, and stacks arrays in the machine's byte order.
    dtype = stage.rows.dtype
    native = np.dtype(np.int64) if stage.kind == INT else dtype.newbyteorder("=")
    if dtype != native:
        steps.append(lambda batch: batch.astype(native))
        stage = Stage(stage.kind, stage.rows.astype(native), own=True)
    if transform is None:
        return BatchTransform(tuple(steps), (), (None,), stage)
    pending = [transform]
    while pending:
        one = pending.pop(0)
        if one is None:
            raise NoArrayForm(f"the {what} Compose holds a None")
        kind = _known_type(one)
        if kind in ((V1, "Compose"), (V2, "Compose")):
            _refuse_altered(one, what)
            if type(one.transforms) not in (list, tuple) or not one.transforms:
                raise NoArrayForm(f"the {what} Compose holds no list of transforms")
            identity += [one, type(one), len(one.transforms)]
            pending[:0] = one.transforms
            continue
        name = f"the {what} {_name(one)}"
        if kind in _STEPS:
            _refuse_altered(one, what)
            identity += [one, type(one), *_values(one, what)]
            step, result = _STEPS[kind](one, stage, name)
        elif id(one) in _FUNCTIONS:
            kinds, step, result = _FUNCTIONS[id(one)]
            if stage.kind not in kinds:
                raise _cannot(name, stage)
            identity.append(one)
        else:
            raise NoArrayForm(f"{name} is known for single examples only")
        names.append(_name(one))
        rows = stage.rows if step is None else step(stage.rows)
        stage = Stage(result, rows, stage.own or rows.dtype != stage.rows.dtype)
        steps += [] if step is None else [step]
    return BatchTransform(tuple(steps), tuple(names), tuple(identity), stage)


def _known_type(transform: Any) -> type | tuple[str, str]:
    """The exact type of a transform; of torchvision's the module and the name.

    torchvision is not imported for this: whoever has one of its transforms has imported it.
    """
    kind = type(transform)
    for module in (V1, V2):
        if getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return module, kind.__name__
    return kind


def _is_of_v2(transform: Any) -> bool:
    return _known_type(transform) == (V2, type(transform).__name__)


def _refuse_altered(transform: Any, what: str) -> None:
    """An instance with hooks or methods of its own does not do what its class does."""
    own = vars(transform)
    altered = (
        own.get("_forward_hooks")
        or own.get("_forward_pre_hooks")
        or own.get("_compiled_call_impl") is not None
        or any(callable(getattr(type(transform), name, None)) for name in own)
    )
    if altered:
        raise NoArrayForm(
            f"the {what} {_name(transform)} has hooks or methods that its class does not have"
        )


def _values(transform: Any, what: str) -> tuple[Any, ...]:
    """What a known transform depends on besides its type; numbers that may change in place."""
    if _known_type(transform) in ((V1, "Normalize"), (V2, "Normalize")):
        try:
            values = (transform.mean, transform.std)
            numbers = [torch.as_tensor(v, dtype=torch.float64) for v in values]
        except (TypeError, ValueError, RuntimeError):
            raise NoArrayForm(f"the {what} {_name(transform)} is not given numbers") from None
        return (
            *(bytes(repr(v.shape), "ascii") + v.numpy(force=True).tobytes() for v in numbers),
            bool(transform.inplace),
        )
    # ToTensor asks torch for its default.
    own = (getattr(transform, "dtype", None), bool(getattr(transform, "scale", False)))
    return (*own, torch.get_default_dtype())


def _name(transform: Any) -> str:
    if isinstance(transform, type) or type(transform).__name__ == "builtin_function_or_method":
        return str(transform.__name__)
    return type(transform).__name__


# Each maker below gets the transform, the stage before it and its name for people. It gives the
# function of a batch (None: it changes nothing) and the kind of its results.
_Step = tuple[Batch | None, str]


def _cannot(name: str, stage: Stage) -> NoArrayForm:
    rows = stage.rows
    return NoArrayForm(
        f"{name} has no batch form for {stage.kind} of {rows.dtype} {rows.shape[1:]}"
    )


def _flatten_and_cast(transform: Any, stage: Stage, name: str) -> _Step:
    if stage.rows.dtype.kind not in "biuf":
        raise _cannot(name, stage)
    size = math.prod(stage.rows.shape[1:])
    return lambda batch: batch.reshape(len(batch), size).astype(np.float32), ARRAY


def _channels_first(batch: np.ndarray) -> np.ndarray:
    """`(n, h, w)` or `(n, h, w, channels)` to `(n, channels, h, w)`."""
    return batch[:, None] if batch.ndim == 3 else np.moveaxis(batch, 3, 1)


def _has_a_tensor(dtype: np.dtype) -> bool:
    try:
        torch.from_numpy(np.empty(0, dtype))
    except TypeError:
        return False
    return True


def _to_tensor(transform: Any, stage: Stage, name: str) -> _Step:
    rows = stage.rows
    of_v2 = _is_of_v2(transform)
    if of_v2 and (stage.kind not in (PICTURE, ARRAY) or rows.ndim == 1):
        return None, stage.kind  # v2 leaves alone what it does not transform
    if stage.kind not in (PICTURE, ARRAY) or rows.ndim not in (3, 4):
        raise _cannot(name, stage)
    if rows.dtype == np.uint8:
        dtype = _numpy_dtype(torch.get_default_dtype(), name)
        return lambda batch: _to_unit_range(_channels_first(batch), dtype), TENSOR
    if stage.kind == PICTURE or not _has_a_tensor(rows.dtype):
        raise _cannot(name, stage)
    return _channels_first, TENSOR


def _to_unit_range(batch: np.ndarray, dtype: np.dtype, divide: bool = True) -> np.ndarray:
    """Pixels to [0, 1] as torch does it: one division or multiplication, correctly rounded."""
    result = batch.astype(dtype, order="C")
    if divide:
        result /= dtype.type(255)
    else:
        result *= dtype.type(1.0 / 255)
    return result


def _numpy_dtype(dtype: torch.dtype, name: str, kinds: str = "f") -> np.dtype:
    """NumPy's name for a dtype of these kinds. Half precision is left out: torch and NumPy round
    its arithmetic in different places."""
    if dtype not in _DTYPES or _DTYPES[dtype].kind not in kinds:
        raise NoArrayForm(f"{name} to {dtype} is known for single examples only")
    return _DTYPES[dtype]


def _pil_to_tensor(transform: Any, stage: Stage, name: str) -> _Step:
    if stage.kind == PICTURE:
        return _channels_first, TENSOR
    if _is_of_v2(transform):
        return None, stage.kind
    raise _cannot(name, stage)


def _to_image(transform: Any, stage: Stage, name: str) -> _Step:
    rows = stage.rows
    if stage.kind == PICTURE:
        return _channels_first, TENSOR
    if stage.kind == TENSOR and rows.ndim >= 3:
        return (_channels_first if rows.ndim == 3 else None), TENSOR
    if stage.kind == ARRAY and _has_a_tensor(rows.dtype):
        if rows.ndim == 1:
            return None, stage.kind  # a NumPy scalar: v2 leaves it alone
        if rows.ndim == 2:
            return lambda batch: batch[:, None, None], TENSOR
        if rows.ndim in (3, 4):
            return _channels_first, TENSOR
    if stage.kind in (INT, FLOAT):
        return None, stage.kind
    raise _cannot(name, stage)


def _convert_image_dtype(transform: Any, stage: Stage, name: str) -> _Step:
    if stage.kind != TENSOR:
        raise _cannot(name, stage)
    return _scaled(transform.dtype, stage, name, divide=True), TENSOR


def _to_dtype(transform: Any, stage: Stage, name: str) -> _Step:
    dtype = transform.dtype
    if not isinstance(dtype, torch.dtype):
        raise NoArrayForm(f"{name} with a dtype for each type is known for single examples only")
    if stage.kind != TENSOR:
        return None, stage.kind  # v2 leaves alone what is not a tensor
    if type(transform).__name__ == "ConvertImageDtype" or transform.scale:
        return _scaled(dtype, stage, name, divide=False), TENSOR
    before = stage.rows.dtype
    if str(dtype) == f"torch.{before}":
        return None, TENSOR
    after = _numpy_dtype(dtype, name, "biuf")
    if before.kind not in "biuf" or (before.kind == "f" and after.kind != "f"):
        raise _cannot(f"{name} to {dtype}", stage)  # what a float out of range becomes is undefined
    return lambda batch: batch.astype(after), TENSOR


def _scaled(dtype: torch.dtype, stage: Stage, name: str, divide: bool) -> Batch | None:
    """Values scaled to the range of another dtype, by division (v1) or multiplication (v2)."""
    before = stage.rows.dtype
    if str(dtype) == f"torch.{before}":
        return None
    if before.kind == "f":
        after = _numpy_dtype(dtype, name)
        return lambda batch: batch.astype(after)
    if before != np.uint8:
        raise _cannot(f"{name} to {dtype}", stage)
    if dtype in (torch.int16, torch.int32, torch.int64):
        after = _DTYPES[dtype]
        bits = after.type(after.itemsize * 8 - 1 - 8)  # one is the sign
        return lambda batch: batch.astype(after) << bits
    after = _numpy_dtype(dtype, name)
    return lambda batch: _to_unit_range(batch, after, divide)


def _normalize(transform: Any, stage: Stage, name: str) -> _Step:
    rows = stage.rows
    of_v2 = _is_of_v2(transform)
    if of_v2 and stage.kind in (ARRAY, INT, FLOAT):
        return None, stage.kind  # v2 leaves alone what is not a tensor
    if stage.kind != TENSOR or rows.dtype not in (np.float32, np.float64) or rows.ndim < 4:
        raise _cannot(name, stage)
    if transform.inplace and not stage.own:
        raise NoArrayForm(f"{name} changes the dataset's own values in place")
    mean, std = (_per_channel(v, rows.dtype) for v in (transform.mean, transform.std))
    if not np.all(std):
        raise NoArrayForm(f"{name} has a std of zero")

    def normalized(batch: np.ndarray) -> np.ndarray:
        result = batch - mean
        result /= std
        return result

    try:
        # One mean for each channel of a picture with one channel makes three of it, in v2.
        same_shape = normalized(rows).shape == rows.shape
    except ValueError:
        same_shape = False
    if not same_shape or max(mean.ndim, std.ndim) >= rows.ndim:
        raise NoArrayForm(f"{name} has other channels than pictures of shape {rows.shape[1:]}")
    return normalized, TENSOR


def _per_channel(values: Any, dtype: np.dtype) -> np.ndarray:
    # Rounded as torch rounds them.
    result = torch.as_tensor(values, dtype=getattr(torch, str(dtype))).numpy(force=True)
    return result.reshape(-1, 1, 1).copy() if result.ndim == 1 else result.copy()


_STEPS: dict[type | tuple[str, str], Callable[[Any, Stage, str], _Step]] = {
    FlattenAndCast: _flatten_and_cast,
    (V1, "ToTensor"): _to_tensor,
    (V2, "ToTensor"): _to_tensor,
    (V1, "PILToTensor"): _pil_to_tensor,
    (V2, "PILToTensor"): _pil_to_tensor,
    (V2, "ToImage"): _to_image,
    (V2, "ToPureTensor"): lambda transform, stage, name: (None, stage.kind),
    (V1, "ConvertImageDtype"): _convert_image_dtype,
    (V2, "ConvertImageDtype"): _to_dtype,
    (V2, "ToDtype"): _to_dtype,
    (V1, "Normalize"): _normalize,
    (V2, "Normalize"): _normalize,
}


def _cast(*dtypes: Any) -> Batch:
    def cast(batch: np.ndarray) -> np.ndarray:
        for dtype in dtypes:
            batch = batch.astype(dtype)
        return batch

    return cast


_INT: tuple[str, ...] = (INT,)
_FUNCTIONS: dict[int, tuple[tuple[str, ...], Batch | None, str]] = {
    id(int): (_INT, None, INT),
    id(float): ((INT, FLOAT), _cast(np.float64), FLOAT),
    # Wide enough for any label that is an int64; a Python number becomes a float by way of float64.
    id(np.int64): (_INT, _cast(np.int64), ARRAY),
    id(np.float32): (_INT, _cast(np.float64, np.float32), ARRAY),
    id(np.float64): (_INT, _cast(np.float64), ARRAY),
    id(torch.tensor): (_INT, None, TENSOR),
    id(torch.as_tensor): (_INT, None, TENSOR),
}
"""Functions that people give as a target_transform, by identity: the kinds of values that they
take, what they do to a batch (None: nothing), and the kind of the results."""
