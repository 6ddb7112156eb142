"""Transforms of whole batches: each one against the real transform, bit for bit."""

import warnings

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from feedax.data import FlattenAndCast, numpy_collate
from feedax.data.batch_transforms import (
    ARRAY,
    FLOAT,
    INT,
    PICTURE,
    TENSOR,
    NoArrayForm,
    Stage,
    batch_transform,
)

AS_OBJECT = {
    PICTURE: Image.fromarray,
    ARRAY: lambda row: row,
    TENSOR: lambda row: torch.from_numpy(np.array(row)),
    INT: int,
    FLOAT: float,
}


def v2_to_tensor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return v2.ToTensor()


def check(transform, rows, kind):
    """The batch form gives what numpy_collate makes of the transformed examples."""
    expected = numpy_collate([transform(AS_OBJECT[kind](row)) for row in rows])
    form = batch_transform(transform, Stage(kind, rows[:0]))
    before = rows.copy()
    batch = form(rows)
    assert (batch.dtype, batch.shape) == (expected.dtype, expected.shape)
    assert batch.tobytes() == expected.tobytes()
    assert rows.tobytes() == before.tobytes()
    assert (form.stage.rows.dtype, form.stage.rows.shape[1:]) == (batch.dtype, batch.shape[1:])


GREY = np.arange(512, dtype=np.uint16).astype(np.uint8).reshape(2, 32, 8)  # every pixel value
COLOUR = np.random.default_rng(0).permuted(
    np.repeat(np.arange(256, dtype=np.uint8), 6).reshape(2, 256, 3), axis=1
).reshape(2, 32, 8, 3)  # fmt: skip
THIN = np.arange(21, dtype=np.uint8).reshape(3, 1, 7)

PICTURE_TRANSFORMS = {
    "FlattenAndCast": FlattenAndCast,
    "v1.ToTensor": v1.ToTensor,
    "v1.PILToTensor": v1.PILToTensor,
    "v2.ToTensor": v2_to_tensor,
    "v2.PILToTensor": v2.PILToTensor,
    "v2.ToImage": v2.ToImage,
    "v2.ToPureTensor": v2.ToPureTensor,
    "v2.ToDtype of a picture": lambda: v2.ToDtype(torch.float32, scale=True),
    "v2.ConvertImageDtype of a picture": lambda: v2.ConvertImageDtype(torch.float32),
    "v1 one mean": lambda: v1.Compose([v1.ToTensor(), v1.Normalize((0.1307,), (0.3081,))]),
    "v1 in place": lambda: v1.Compose([v1.ToTensor(), v1.Normalize([0.5], [0.7], True)]),
    "v2 in place": lambda: v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([0.5], [0.7], True)]
    ),
    "v1 bare numbers": lambda: v1.Compose([v1.ToTensor(), v1.Normalize(0.1, 0.2)]),
    "tensors of numbers": lambda: v1.Compose(
        [v1.ToTensor(), v1.Normalize(torch.tensor(0.1), np.array([0.2]))]
    ),
    "v1 three steps": lambda: v1.Compose(
        [v1.PILToTensor(), v1.ConvertImageDtype(torch.float64), v1.Normalize([0.1], [0.3])]
    ),
    "v2 four steps": lambda: v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.1], [0.3]),
         v2.ToPureTensor()]
    ),
    "nested": lambda: v2.Compose([v1.Compose([v1.ToTensor()]), v2.ToDtype(torch.float64, True)]),
    "flat at the end": lambda: v1.Compose([v1.ToTensor(), FlattenAndCast()]),
    "flat before ToDtype": lambda: v2.Compose([FlattenAndCast(), v2.ToDtype(torch.float64)]),
    "flat before ToImage": lambda: v2.Compose([FlattenAndCast(), v2.ToImage()]),
}  # fmt: skip


# NumPy warns of how torch's tensors become arrays.
of_tensors = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


@of_tensors
@pytest.mark.parametrize("name", PICTURE_TRANSFORMS)
@pytest.mark.parametrize("rows", [GREY, COLOUR, THIN], ids=["grey", "colour", "thin"])
def test_pictures(name, rows):
    check(PICTURE_TRANSFORMS[name](), rows, PICTURE)


@pytest.mark.parametrize("make", [v1, v2])
def test_a_mean_for_each_channel(make):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    check(v2.Compose([v1.ToTensor(), make.Normalize(mean, std)]), COLOUR, PICTURE)
    whole = torch.rand(3, 32, 8, generator=torch.Generator().manual_seed(0))
    check(v1.Compose([v1.ToTensor(), v1.Normalize(whole, whole + 1)]), COLOUR, PICTURE)


DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [v1.ConvertImageDtype, v2.ConvertImageDtype,
                                  lambda d: v2.ToDtype(d, scale=True), v2.ToDtype])  # fmt: skip
def test_every_value_in_every_dtype(make, dtype):
    values = np.arange(256, dtype=np.uint8).reshape(2, 1, 8, 16)
    check(make(dtype), values, TENSOR)


@pytest.mark.parametrize("before", ["bool", "int8", "int64", "uint16", "float32", "float64"])
@pytest.mark.parametrize("after", ["bool", "uint8", "int16", "int64", "float32", "float64"])
def test_casts(before, after, rng):
    if before.startswith("float") and not after.startswith("float"):
        return  # has no batch form: see below
    values = (rng.normal(size=(3, 2, 4)) * 1000).astype(before)
    check(v2.ToDtype(getattr(torch, after)), values, TENSOR)


floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45])
numbers = st.floats(-1e30, 1e30) | st.integers(-300, 300)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(floats, min_size=12, max_size=12),
    st.lists(numbers, min_size=3, max_size=3),
    st.lists(numbers.filter(lambda x: np.float32(x) != 0), min_size=3, max_size=3),
    st.sampled_from([v1, v2]),
)
def test_normalize_any_floats(values, mean, std, make):
    rows = np.array(values, np.float32).reshape(2, 3, 1, 2)
    check(make.Normalize(mean, std), rows, TENSOR)
    check(make.Normalize(mean, std), rows.astype(np.float64), TENSOR)


ARRAYS = [np.uint8, np.int16, np.int64, np.float32, np.float64]


@pytest.mark.parametrize("dtype", ARRAYS)
@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 5, 4, 3), (2, 1, 1, 1), (2, 3, 0)])
@pytest.mark.parametrize("make", [v1.ToTensor, v2_to_tensor, v2.ToImage, FlattenAndCast])
def test_arrays(make, shape, dtype, rng):
    rows = rng.integers(0, 100, shape).astype(dtype)
    check(make(), rows, ARRAY)
    check(make(), rows.astype(rows.dtype.newbyteorder("=")), ARRAY)


@pytest.mark.parametrize("make", [v2.ToImage, v2.PILToTensor, lambda: v2.ToDtype(torch.int32),
                                  lambda: v2.Normalize([1], [2]), v2_to_tensor])  # fmt: skip
@pytest.mark.parametrize("kind", [ARRAY, INT, FLOAT])
def test_v2_leaves_alone_what_it_does_not_transform(make, kind):
    check(make(), np.arange(3.0) if kind == FLOAT else np.arange(3), kind)


@of_tensors
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 4), (2, 3, 5, 4), (2, 6, 1, 5, 4)])
def test_tensors(shape, rng):
    rows = rng.integers(0, 256, shape).astype(np.uint8)
    check(v2.ToDtype(torch.float32, scale=True), rows, TENSOR)
    check(FlattenAndCast(), rows, TENSOR)
    if len(shape) > 2:
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, True), v2.Normalize([0.5], [0.1])]
        check(v2.Compose(steps), rows, TENSOR)


LABEL_TRANSFORMS = {
    "int": int, "float": float, "np.int64": np.int64, "np.float32": np.float32,
    "np.float64": np.float64, "torch.tensor": torch.tensor, "torch.as_tensor": torch.as_tensor,
    "FlattenAndCast": FlattenAndCast(), "v1.Compose": v1.Compose([float]),
    "v2.Compose": v2.Compose([torch.tensor, v2.ToDtype(torch.float32)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LABEL_TRANSFORMS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels(name, dtype):
    transform = LABEL_TRANSFORMS[name]
    labels = np.array([0, 7, 255], dtype)
    check(transform, labels, INT)
    if dtype == np.int64 and not isinstance(transform, FlattenAndCast):
        check(transform, np.array([2**53 + 1, 2**62 + 2**9 + 1, -(2**63)], dtype), INT)


def test_big_endian_rows_come_out_in_the_machines_order():
    rows = np.arange(6, dtype=">i4").reshape(2, 3)
    form = batch_transform(None, Stage(ARRAY, rows[:0]))
    expected = numpy_collate(list(rows))
    assert (form(rows).dtype, form(rows).tobytes()) == (expected.dtype, expected.tobytes())


class Louder(v1.ToTensor):
    pass


def hooked():
    transform = v2.ToImage()
    transform.register_forward_hook(lambda module, args, output: -output)
    return transform


def shadowed():
    transform = v1.Normalize([0], [1])
    transform.forward = torch.neg
    return transform


ONLY = "the transform {} is known for single examples only"
NO_FORM = "the transform {} has no batch form for {} of {} {}"
OWN = "the transform {} has hooks or methods that its class does not have"
DTYPE = "the transform {} to torch.{} is known for single examples only"


def scaled(dtype):
    return v2.Compose([v2.ToImage(), v2.ToDtype(dtype, scale=True)])


def normalized(*arguments, make=v1):
    return v1.Compose([v1.ToTensor(), make.Normalize(*arguments)])


WHY_NOT = [
    (Louder(), ONLY.format("Louder")),
    (lambda pic: pic, ONLY.format("function")),
    (abs, ONLY.format("abs")),
    (np.float16, ONLY.format("float16")),
    (v1.RandomHorizontalFlip(), ONLY.format("RandomHorizontalFlip")),
    (v2.Resize(4), ONLY.format("Resize")),
    (v1.Compose([v1.ToTensor(), Louder()]), ONLY.format("Louder")),
    (v1.Compose([None]), "the transform Compose holds a None"),
    (v1.Compose([]), "the transform Compose holds no list of transforms"),
    (v1.Compose({1: 2}), "the transform Compose holds no list of transforms"),
    (hooked(), OWN.format("ToImage")),
    (v1.Compose([v1.ToTensor(), shadowed()]), OWN.format("Normalize")),
    (v1.ConvertImageDtype(torch.float32),
     NO_FORM.format("ConvertImageDtype", "a PIL image", "uint8", (5, 4))),
    (v1.Normalize([0.5], [0.5]), NO_FORM.format("Normalize", "a PIL image", "uint8", (5, 4))),
    (v2.Normalize([0.5], [0.5]), NO_FORM.format("Normalize", "a PIL image", "uint8", (5, 4))),
    (v1.Compose([v1.PILToTensor(), v1.Normalize([0.5], [0.5])]),
     NO_FORM.format("Normalize", "a tensor", "uint8", (1, 5, 4))),
    (v1.Compose([v1.ToTensor(), v1.ToTensor()]),
     NO_FORM.format("ToTensor", "a tensor", "float32", (1, 5, 4))),
    (v1.Compose([FlattenAndCast(), v1.ToTensor()]),
     NO_FORM.format("ToTensor", "an array", "float32", (20,))),
    (v1.Compose([v1.ToTensor(), v1.PILToTensor()]),
     NO_FORM.format("PILToTensor", "a tensor", "float32", (1, 5, 4))),
    (float, NO_FORM.format("float", "a PIL image", "uint8", (5, 4))),
    (normalized([0.5], [0.0]), "the transform Normalize has a std of zero"),
    (normalized([0.5], [1e-50], make=v2), "the transform Normalize has a std of zero"),
    (normalized([0.5] * 3, [0.5] * 3),
     "the transform Normalize has other channels than pictures of shape (1, 5, 4)"),
    (normalized([0.5] * 3, [0.5] * 3, make=v2),
     "the transform Normalize has other channels than pictures of shape (1, 5, 4)"),
    (normalized(["a"], [0.5]), "the transform Normalize is not given numbers"),
    (scaled(torch.float16), DTYPE.format("ToDtype", "float16")),
    (scaled(torch.bfloat16), DTYPE.format("ToDtype", "bfloat16")),
    (scaled(torch.uint16), DTYPE.format("ToDtype", "uint16")),
    (v2.ToDtype({torch.Tensor: torch.float32}),
     "the transform ToDtype with a dtype for each type is known for single examples only"),
    (v2.Compose([v1.ToTensor(), v2.ToDtype(torch.uint8)]),
     "the transform ToDtype to torch.uint8 has no batch form for a tensor of float32 (1, 5, 4)"),
    (v2.Compose([v1.ToTensor(), v2.ToDtype(torch.uint8, scale=True)]),
     DTYPE.format("ToDtype", "uint8")),
]  # fmt: skip


@pytest.mark.parametrize(("transform", "why"), WHY_NOT, ids=lambda v: v if type(v) is str else "")
def test_what_has_no_batch_form(transform, why):
    with pytest.raises(NoArrayForm) as error:
        batch_transform(transform, Stage(PICTURE, np.empty((0, 5, 4), np.uint8)))
    assert str(error.value) == why


def test_in_place_is_refused_where_it_would_change_the_dataset():
    with pytest.raises(NoArrayForm) as error:
        batch_transform(
            v2.Normalize([0.5], [0.5], inplace=True), Stage(TENSOR, np.empty((0, 1, 2, 2), "f4"))
        )
    assert str(error.value) == "the transform Normalize changes the dataset's own values in place"


def test_the_default_dtype_is_part_of_the_identity():
    stage = Stage(PICTURE, GREY[:0])
    try:
        torch.set_default_dtype(torch.float64)
        check(v1.ToTensor(), GREY, PICTURE)
        wide = batch_transform(v1.ToTensor(), stage).identity
        torch.set_default_dtype(torch.float16)
        with pytest.raises(NoArrayForm) as error:
            batch_transform(v1.ToTensor(), stage)
    finally:
        torch.set_default_dtype(torch.float32)
    assert str(error.value) == DTYPE.format("ToTensor", "float16")
    assert wide[1:] != batch_transform(v1.ToTensor(), stage).identity[1:]


def edits():
    """Transforms, and what people do to them between two epochs."""
    compose = v1.Compose([v1.ToTensor(), v1.Normalize([0.1], [0.2])])
    yield compose, lambda: compose.transforms.pop()
    replaced = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    yield replaced, lambda: replaced.transforms.__setitem__(0, v2.PILToTensor())
    listed = v1.Compose([v1.ToTensor(), v1.Normalize([0.1], [0.2])])
    yield listed, lambda: listed.transforms[1].mean.__setitem__(0, 0.3)
    tensor = v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor([0.1]), [0.2])])
    yield tensor, lambda: tensor.transforms[1].mean.add_(1)
    dtype = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    yield dtype, lambda: setattr(dtype.transforms[1], "dtype", torch.float64)
    scale = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    yield scale, lambda: setattr(scale.transforms[1], "scale", False)


@pytest.mark.parametrize(("transform", "edit"), list(edits()))
def test_an_edit_in_place_changes_the_identity(transform, edit):
    stage = Stage(PICTURE, GREY[:0])
    first, again = (batch_transform(transform, stage).identity for _ in range(2))
    assert first == again
    edit()
    assert batch_transform(transform, stage).identity != first
    check(transform, GREY, PICTURE)
