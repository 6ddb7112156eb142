"""Transforms of one example, as functions of a whole batch in NumPy, equal to the bit.

A transform is known by its exact type and by what it is given: ``ToTensor`` does one thing to a
picture and another to an array. What is not known here has no batch form, and is never guessed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms as v1
from torchvision.transforms import v2

from feedax.data.array_dataset import FlattenAndCast

Batch = Callable[[np.ndarray], np.ndarray]

_DTYPES = {
    getattr(torch, name): np.dtype(name)
    for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                 "float32", "float64")
}  # fmt: skip

PICTURE, ARRAY, TENSOR, INT, FLOAT = "a PIL image", "an array", "a tensor", "an int", "a float"
"""What a transform is given for one example. A `tv_tensors.Image` is a tensor here."""


class NoArrayForm(Exception):
    """This dataset's batches cannot be gathered from arrays; the message says why."""


@dataclass(frozen=True)
class Stage:
    """Examples between two transforms.

    Attributes:
        kind: the Python object that an example is: `PICTURE`, `ARRAY`, `TENSOR`, `INT`, `FLOAT`.
        rows: a batch of no examples, `(0, ...)`: it has their dtype and shape.
        own: whether the values are a copy, not the dataset's own memory.
    """

    kind: str
    rows: np.ndarray
    own: bool = False


@dataclass(frozen=True)
class BatchTransform:
    """A transform of a whole batch.

    Attributes:
        steps: applied one after the other to arrays `(examples, ...)`.
        names: of the transforms, for people.
        identity: the objects and values that it was made from.
        stage: what it makes of an example.
    """

    steps: tuple[Batch, ...]
    names: tuple[str, ...]
    identity: tuple[Any, ...]
    stage: Stage

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
    # numpy_collate makes int64 of Python's int, and stacks arrays in the machine's byte order.
    dtype = stage.rows.dtype
    native = np.dtype(np.int64) if stage.kind == INT else dtype.newbyteorder("=")
    if dtype != native:
        raw = Stage(stage.kind, stage.rows.astype(native), own=True)
        rest = batch_transform(transform, raw, what)
        steps: tuple[Batch, ...] = (lambda batch: batch.astype(native), *rest.steps)
        return BatchTransform(steps, rest.names, rest.identity, rest.stage)
    if transform is None:
        return BatchTransform((), (), (None,), stage)
    if type(transform) in (v1.Compose, v2.Compose):
        return _compose(transform, stage, what)
    if type(transform) in _STEPS:
        _refuse_altered(transform, what)
        identity = (transform, type(transform), *_values(transform, what))
        step, kind = _STEPS[type(transform)](transform, stage, f"the {what} {_name(transform)}")
    elif (make := _FUNCTIONS.get(id(transform))) is not None:
        step, kind = make(stage, f"the {what} {_name(transform)}")
        identity = (transform,)
    else:
        raise NoArrayForm(f"the {what} {_name(transform)} is known for single examples only")
    rows = stage.rows if step is None else step(stage.rows)
    after = Stage(kind, rows, stage.own or rows.dtype != stage.rows.dtype)
    return BatchTransform(() if step is None else (step,), (_name(transform),), identity, after)


def _compose(compose: Any, stage: Stage, what: str) -> BatchTransform:
    _refuse_altered(compose, what)
    if type(compose.transforms) not in (list, tuple) or not compose.transforms:
        raise NoArrayForm(f"the {what} Compose holds no list of transforms")
    whole = BatchTransform((), (), (compose, type(compose), len(compose.transforms)), stage)
    for transform in compose.transforms:
        if transform is None:
            raise NoArrayForm(f"the {what} Compose holds a None")
        part = batch_transform(transform, whole.stage, what)
        whole = BatchTransform(
            whole.steps + part.steps,
            whole.names + part.names,
            whole.identity + part.identity,
            part.stage,
        )
    return whole


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
    if type(transform) in (v1.Normalize, v2.Normalize):
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
    of_v2 = type(transform) is v2.ToTensor
    if of_v2 and (stage.kind not in (PICTURE, ARRAY) or rows.ndim == 1):
        return None, stage.kind  # v2 leaves alone what it does not transform
    if stage.kind not in (PICTURE, ARRAY) or rows.ndim not in (3, 4):
        raise _cannot(name, stage)
    if rows.dtype == np.uint8:
        return _scaled_by_division(_numpy_dtype(torch.get_default_dtype(), name)), TENSOR
    if stage.kind == PICTURE or not _has_a_tensor(rows.dtype):
        raise _cannot(name, stage)
    return _channels_first, TENSOR


def _scaled_by_division(dtype: np.dtype) -> Batch:
    """Pixels to [0, 1] as torch's `div` does it: one division, correctly rounded."""

    def scaled(batch: np.ndarray) -> np.ndarray:
        result = _channels_first(batch).astype(dtype, order="C")
        result /= dtype.type(255)
        return result

    return scaled


def _numpy_dtype(dtype: torch.dtype, name: str, kinds: str = "f") -> np.dtype:
    """NumPy's name for a dtype of these kinds. Half precision is left out: torch and NumPy round
    its arithmetic in different places."""
    if dtype not in _DTYPES or _DTYPES[dtype].kind not in kinds:
        raise NoArrayForm(f"{name} to {dtype} is known for single examples only")
    return _DTYPES[dtype]


def _pil_to_tensor(transform: Any, stage: Stage, name: str) -> _Step:
    if stage.kind == PICTURE:
        return _channels_first, TENSOR
    if type(transform) is v2.PILToTensor:
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


def _unchanged(transform: Any, stage: Stage, name: str) -> _Step:
    return None, stage.kind


def _convert_image_dtype(transform: v1.ConvertImageDtype, stage: Stage, name: str) -> _Step:
    if stage.kind != TENSOR:
        raise _cannot(name, stage)
    return _scaled(transform.dtype, stage, name, divide=True), TENSOR


def _to_dtype(transform: Any, stage: Stage, name: str) -> _Step:
    dtype = transform.dtype
    if not isinstance(dtype, torch.dtype):
        raise NoArrayForm(f"{name} with a dtype for each type is known for single examples only")
    if stage.kind != TENSOR:
        return None, stage.kind  # v2 leaves alone what is not a tensor
    if type(transform) is v2.ConvertImageDtype or transform.scale:
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

    def scaled(batch: np.ndarray) -> np.ndarray:
        result = batch.astype(after)
        if divide:
            result /= after.type(255)
        else:
            result *= after.type(1.0 / 255)
        return result

    return scaled


def _normalize(transform: Any, stage: Stage, name: str) -> _Step:
    rows = stage.rows
    of_v2 = type(transform) is v2.Normalize
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


_STEPS: dict[type, Callable[[Any, Stage, str], _Step]] = {
    FlattenAndCast: _flatten_and_cast,
    v1.ToTensor: _to_tensor,
    v2.ToTensor: _to_tensor,
    v1.PILToTensor: _pil_to_tensor,
    v2.PILToTensor: _pil_to_tensor,
    v2.ToImage: _to_image,
    v2.ToPureTensor: _unchanged,
    v1.ConvertImageDtype: _convert_image_dtype,
    v2.ConvertImageDtype: _to_dtype,
    v2.ToDtype: _to_dtype,
    v1.Normalize: _normalize,
    v2.Normalize: _normalize,
}


# Plain functions that people give as a target_transform. They are known by identity.
def _to_int(stage: Stage, name: str) -> _Step:
    if stage.kind != INT:
        raise _cannot(name, stage)
    return None, INT


def _to_float(stage: Stage, name: str) -> _Step:
    if stage.kind not in (INT, FLOAT):
        raise _cannot(name, stage)
    return lambda batch: batch.astype(np.float64), FLOAT


def _to_scalar(dtype: np.dtype) -> Callable[[Stage, str], _Step]:
    def make(stage: Stage, name: str) -> _Step:
        if stage.kind != INT:
            raise _cannot(name, stage)
        # By way of float64, as a Python number goes.
        way = np.dtype(np.float64) if dtype.kind == "f" else dtype
        return lambda batch: batch.astype(way).astype(dtype, copy=False), ARRAY

    return make


def _to_scalar_tensor(stage: Stage, name: str) -> _Step:
    if stage.kind != INT:
        raise _cannot(name, stage)
    return None, TENSOR


_FUNCTIONS: dict[int, Callable[[Stage, str], _Step]] = {
    id(int): _to_int,
    id(float): _to_float,
    # Wide enough for any label that is an int64, so that none overflows.
    **{id(scalar): _to_scalar(np.dtype(scalar)) for scalar in (np.int64, np.float32, np.float64)},
    id(torch.tensor): _to_scalar_tensor,
    id(torch.as_tensor): _to_scalar_tensor,
}
