"""What no NumPy array holds as it is: an error that names the field, the example and the remedy."""

import datetime
import decimal
import fractions
import warnings

import jax
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from helpers import slow
from PIL import Image
from torch.utils.data import Dataset, Subset

import feedax
from feedax import NumpyLoader
from feedax.data import ArrayDataset, numpy_collate
from feedax.data.array_form import register_arrays
from feedax.errors import BatchError, DatasetError, ExampleError, PlanError

FILL = "fill it in with .filled(...), and yield its mask as a field"
CONVERT = "convert it in the dataset, or give the loader a collate_fn"
MASKED = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[False, False], [True, False]])
RECORDS = np.ma.array([(1, 2.0)], mask=[(False, True)], dtype=[("a", int), ("b", float)])


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


def nested(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=layout)


def sparse(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(2).to_sparse(
            layout=layout, blocksize=(1, 1) if "bs" in str(layout) else None
        )


def half_complex():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ones(2, dtype=torch.complex32)


DENSE = "make it dense with .to_dense(), or yield its values and indices"
REFUSED_ALWAYS = {
    "masked": lambda: (MASKED, "a masked array, masked at [1, 0]", FILL),
    "masked scalar": lambda: (MASKED[1, 0], "a masked value", FILL),
    "masked records": lambda: (RECORDS, "a masked array, masked at [0]", FILL),
    "a masked record": lambda: (RECORDS[0], "a masked value", FILL),
    **{str(layout): lambda layout=layout: (sparse(layout), f"a sparse tensor ({layout})", DENSE)
       for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr,
                      torch.sparse_bsc)},
    "nested": lambda: (nested(torch.strided), "a nested tensor",
                       "pad it with .to_padded_tensor(...)"),
    "jagged": lambda: (nested(torch.jagged), "a nested tensor",
                       "pad it with .to_padded_tensor(...)"),
    "quantised": lambda: (quantised(), "a quantised tensor",
                          "yield its .dequantize() or its .int_repr()"),
    "meta": lambda: (torch.ones(2, device="meta"), "a tensor on the meta device, without values",
                     "load its values"),
    "half complex": lambda: (
        half_complex(), "a Tensor of torch.complex32 that is no array (Got unsupported ScalarType "
        "ComplexHalf)", CONVERT),
    "Series of text": lambda: (pd.Series(["a"]), "a Series of Python objects", CONVERT),
    "Series of objects": lambda: (pd.Series([1], dtype=object), "a Series of Python objects",
                                  CONVERT),
    "Series of bools": lambda: (pd.Series([True, None], dtype="boolean"),
                                "a Series of Python objects", CONVERT),
    "missing integer": lambda: (pd.Series([1, None], dtype="Int64"),
                                "a Series of Int64 with missing values", CONVERT),
    "array of pandas": lambda: (pd.array([1, None], dtype="UInt8"),
                                "a IntegerArray of UInt8 with missing values", CONVERT),
    "DataFrame": lambda: (pd.DataFrame({"a": [1], "b": ["x"]}), "a DataFrame of Python objects",
                          CONVERT),
    "Categorical": lambda: (pd.Categorical(["a"]), "a Categorical of Python objects", CONVERT),
    "key": lambda: (
        jax.random.key(0), "a PRNGKeyArray that is no array (JAX array with PRNGKey dtype cannot "
        "be converted to a NumPy array. Use jax.random.key_data(arr) if you wish to extract the "
        "underlying integer array)", CONVERT),
}  # fmt: skip
REFUSED_IN_A_BATCH = {
    "NA": lambda: (pd.NA, "a NAType", CONVERT),
    "NaT": lambda: (pd.NaT, "a NaTType", CONVERT),
    "Timestamp": lambda: (pd.Timestamp("2020"), "a Timestamp", CONVERT),
    "csr_matrix": lambda: (scipy.sparse.csr_matrix(np.eye(2)), "a csr_matrix", CONVERT),
    "coo_array": lambda: (scipy.sparse.coo_array(np.eye(2)), "a coo_array", CONVERT),
    "generator": lambda: (iter(()), "a tuple_iterator", CONVERT),
    "set": lambda: ({1}, "a set", CONVERT),
    "keys": lambda: ({1: 2}.keys(), "a dict_keys", CONVERT),
    "Decimal": lambda: (decimal.Decimal("1.5"), "a Decimal", CONVERT),
    "Fraction": lambda: (fractions.Fraction(1, 2), "a Fraction", CONVERT),
    "date": lambda: (datetime.date(2020, 1, 1), "a date", CONVERT),
}


class Second(Dataset):
    """Its second example has something else."""

    def __init__(self, first, second):
        self.values = first, second

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {"x": [self.values[i], np.float32(0)]}


def said(loader, kind=ExampleError):
    with pytest.raises(kind) as error:
        list(loader)
    return str(error.value)


WHAT = "must be made of arrays, tensors, images, numbers and text, and"


@pytest.mark.parametrize(
    "make", [*REFUSED_ALWAYS.values(), *REFUSED_IN_A_BATCH.values()],
    ids=[*REFUSED_ALWAYS, *REFUSED_IN_A_BATCH],
)  # fmt: skip
def test_an_example_is_named_with_its_field(make):
    value, what, remedy = make()
    field = "field ['x'][0]"
    message = f"numpy_collate: {field} {WHAT} example {{}} has {what} there; {remedy}"
    assert said(NumpyLoader(Second(value, value), 2)) == message.format(0)
    # Beside a number, the first example of the field is none of its kind.
    assert said(NumpyLoader(Second(1.5, value), 2)) == message.format(1)
    assert said(NumpyLoader(Subset(Second(1.5, value), [1, 0]), 2)) == message.format(0)


@pytest.mark.parametrize("make", REFUSED_ALWAYS.values(), ids=REFUSED_ALWAYS)
def test_so_is_one_that_is_not_batched_and_a_batch_of_ones_own(make):
    value, what, remedy = make()
    data = Second(0, value)
    message = f"NumpyLoader: field ['x'][0] {WHAT} {{}} has {what} there; {remedy}"
    assert said(NumpyLoader(data, None)) == message.format("example 1")
    assert said(NumpyLoader(data, 2, collate_fn=lambda examples: examples[1])) == message.format(
        "a batch of the collate_fn"
    )
    stream = torch.utils.data.ChainDataset([Stream(data)])
    assert said(NumpyLoader(stream, None)) == message.format("example 1 of the stream")


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (self.data[i] for i in range(len(self.data)))


@pytest.mark.parametrize("size", [1, slow(None)])
def test_a_worker_says_the_same(size):
    who = "numpy_collate" if size else "NumpyLoader"
    loader = NumpyLoader(Second(np.ones((2, 2)), MASKED), size, num_workers=1)
    assert said(loader).startswith(
        f"{who}: field ['x'][0] {WHAT} example 1 has a masked array, masked at [1, 0] there"
    )


def test_what_is_no_array_stays_in_a_batch_of_ones_own():
    values = [make()[0] for make in REFUSED_IN_A_BATCH.values()]
    (batch,) = NumpyLoader([0], 1, collate_fn=lambda _: values)
    assert batch is values


def test_a_mask_that_hides_nothing_is_none():
    array = np.ma.array([1.0, 2.0], mask=[False, False])
    for batch in (numpy_collate([array, np.ones(2)]), next(iter(NumpyLoader([array], None))),
                  next(iter(NumpyLoader([0], 1, collate_fn=lambda _: array)))):  # fmt: skip
        assert type(batch) is np.ndarray
    assert numpy_collate([array]).tolist() == [[1, 2]]
    assert type(numpy_collate([np.ma.array(1.0)])) is np.ndarray


class Registered(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


register_arrays(Registered, lambda data: data.x)


def test_arrays_of_a_dataset():
    with pytest.raises(DatasetError) as error:
        ArrayDataset(np.zeros(2), MASKED)
    assert str(error.value) == (
        "ArrayDataset: targets must hold a value everywhere, and it is a masked array, masked at "
        f"[1, 0]; {FILL}"
    )
    whole = np.ma.array([1.0, 2.0])
    assert [batch[0].tolist() for batch in NumpyLoader(ArrayDataset(whole, whole))] == [[1], [2]]
    loader = NumpyLoader(Registered(MASKED), 2)
    assert loader.plan().name == "streamed"
    assert said(loader) == (
        f"numpy_collate: an example {WHAT} example 1 has a masked array, masked at [0] there; "
        f"{FILL}"
    )
    with pytest.raises(PlanError, match="Registered holds a MaskedArray, not a plain NumPy array"):
        next(iter(NumpyLoader(Registered(MASKED), 2, plan="resident")))


ON_THE_WAY = {
    "masked": (MASKED, "a masked array, masked at [1, 0]", FILL),
    "objects": (np.array([None, 1]), "values of type object", None),
    "Series": (pd.Series(["a", "b"]), "a Series of Python objects", None),
    "missing": (pd.Series([1, None], dtype="Int64"), "a Series of Int64 with missing values", None),
    "sparse": (scipy.sparse.csr_matrix(np.eye(2)), "a csr_matrix", None),
    "dates": (np.array(["2020", "2021"], "datetime64[D]"), "values of type datetime64[D]", None),
    "records": (np.zeros(2, [("a", int)]), "values of type [('a', '<i8')]", None),
    "tensor": (
        torch.ones(2, requires_grad=True), "a Tensor that is no array (Can't call numpy() on "
        "Tensor that requires grad. Use tensor.detach().numpy() instead)", None),
    "set": ({1, 2}, "a set", None),
}  # fmt: skip


@pytest.mark.parametrize(("value", "what", "remedy"), ON_THE_WAY.values(), ids=ON_THE_WAY)
def test_batches_on_their_way_to_the_device(value, what, remedy):
    remedy = remedy or "leave that field out of the dataset's examples, or turn it into numbers"
    for pair, field in (
        (({"a": np.ones(2), "b": value}, np.zeros(2)), "inputs['b']"),
        ((np.ones(2), value), "targets"),
    ):
        message = (
            f"{{}}: field {{}} of a batch must be made of numbers, and it holds {what}; {remedy}"
        )
        with pytest.raises(BatchError) as error:
            feedax.fit(lambda w, x: w, np.ones(2), [pair])
        assert str(error.value) == message.format("fit", field)
        with pytest.raises(BatchError) as error:
            list(feedax.prefetch_to_device([pair]))
        place = field.replace("inputs", "[0]").replace("targets", "[1]")
        assert str(error.value) == message.format("prefetch_to_device", place)


def test_a_masked_batch_that_hides_nothing_goes_to_the_device():
    (got,) = feedax.prefetch_to_device([np.ma.array([1.0, 2.0], mask=[False, False])])
    assert got.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
@pytest.mark.parametrize("workers", [0, 1])
def test_small_floats_are_those_of_ml_dtypes(name, workers):
    values = [torch.tensor([0.5, -i]).to(getattr(torch, name)) for i in range(2)]
    (batch,) = NumpyLoader(values, 2, num_workers=workers)
    assert batch.dtype == getattr(ml_dtypes, name)
    assert batch.astype(np.float32).tolist() == [[0.5, 0], [0.5, -1]]
    (on_device,) = feedax.prefetch_to_device([batch])
    assert on_device.dtype == batch.dtype


def test_objects_that_were_given_as_an_array_stay_one():
    batch = numpy_collate([np.array(None, object), np.array([1], object)[0:1].reshape(())])
    assert (batch.dtype, batch.tolist()) == (np.dtype(object), [None, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = np.matrix([[1, 2]])
    assert numpy_collate([matrix] * 2).shape == (2, 1, 2)
    assert type(next(iter(NumpyLoader([matrix], None)))) is np.ndarray


def palette(colour):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *colour])
    return image


MISMATCH = (
    "numpy_collate: an example must have {} that all examples of a batch share, and it is {} in "
    "example 0 but {} in example 1; make them equal in the dataset (resize, crop or pad), or give "
    "the loader a collate_fn"
)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (Image.new("L", (2, 2)), Image.new("1", (2, 2)), ("an image mode", "L", "1")),
        (palette((1, 2, 3)), palette((3, 2, 1)),
         ("an image mode", "P with palette 1b3ff8ac", "P with palette f6b54dee")),
        (np.datetime64("2020"), np.int64(1), ("a kind of value", "date", "number")),
        (np.timedelta64(3, "s"), 3, ("a kind of value", "duration", "number")),
        (np.zeros((), [("a", int)]), np.float64(1), ("a dtype", "[('a', '<i8')]", "float64")),
        (np.array("a", np.dtypes.StringDType()), np.float64(1),
         ("a kind of value", "text", "number")),
    ],
)  # fmt: skip
def test_values_that_mean_something_else(first, second, said):
    with pytest.raises(ExampleError) as error:
        numpy_collate([first, second])
    assert str(error.value) == MISMATCH.format(*said)


def test_pictures_with_one_palette_are_their_indices():
    assert numpy_collate([palette((1, 2, 3))] * 2).tolist() == [[[1, 1], [1, 1]]] * 2
    assert numpy_collate([Image.new("1", (1, 1), 1)] * 2).dtype == bool


def test_ragged_lists_beside_arrays():
    said = r"field \[0\] must be made of .*, and example 1 has a list that is no array \(setting an"
    with pytest.raises(ExampleError, match=said):
        numpy_collate([(np.ones(1),), ([[1], [1, 2]],)])
