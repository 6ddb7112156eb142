"""The datasets that feedax knows, by their exact types: torch's, torchvision's, Hugging Face's.

Importing this module registers them. Each form follows the dataset's own ``__getitem__``.
"""

import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from feedax.data.array_dataset import ArrayDataset
from feedax.data.array_form import (
    NO_ROWS,
    ArrayForm,
    ConcatForm,
    SubsetForm,
    array_form,
    arrays_form,
    register_array_form,
)
from feedax.data.batch_transforms import INT, PICTURE, NoArrayForm
from feedax.tree import name_of

TV = "torchvision.datasets"
"""Not imported: whoever has one of its datasets has imported it."""


@register_array_form(TensorDataset)
def _tensors(dataset: TensorDataset) -> ArrayForm:
    if not dataset.tensors:
        raise NoArrayForm("TensorDataset holds no tensor")
    return arrays_form(dataset, dataset.tensors)


@register_array_form(np.ndarray, np.memmap, torch.Tensor)
def _bare(dataset: Any) -> ArrayForm:
    return arrays_form(dataset, [dataset], structure=itemgetter(0))


@register_array_form(ArrayDataset)
def _arrays(dataset: ArrayDataset) -> ArrayForm:
    for array in (dataset.inputs, dataset.targets):
        if not isinstance(array, np.ndarray):
            raise NoArrayForm(f"ArrayDataset holds a {name_of(array)}, not a plain NumPy array")
    return arrays_form(dataset, [dataset.inputs, dataset.targets], [dataset.transform])


@register_array_form(Subset)
def _subset(dataset: Subset[Any]) -> ArrayForm:
    whole = array_form(dataset.dataset)
    rows = np.asarray(list(dataset.indices))
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise NoArrayForm("the indices of Subset are not whole numbers")
    rows = rows.astype(np.intp)
    count = len(whole)
    if rows.size and (rows.min() < -count or rows.max() >= count):
        raise NoArrayForm("an index of Subset lies outside its dataset")
    rows[rows < 0] += count
    return SubsetForm(
        name=whole.name,
        identity=(*whole.identity, rows.tobytes()),
        structure=whole.structure,
        whole=whole,
        rows=rows,
    )


@register_array_form(ConcatDataset)
def _concat(dataset: ConcatDataset[Any]) -> ArrayForm:
    parts = tuple(array_form(part) for part in dataset.datasets)
    ends = np.cumsum([len(part) for part in parts])
    if list(dataset.cumulative_sizes) != ends.tolist():
        raise NoArrayForm("a part of ConcatDataset has another length than when it was put there")
    if len({_shape_of_examples(part) for part in parts}) > 1:
        raise NoArrayForm("the parts of ConcatDataset hold examples of different kinds")
    names = list(dict.fromkeys(part.name for part in parts))
    return ConcatForm(
        name=" and ".join(names),
        identity=(ends.tobytes(), *(item for part in parts for item in part.identity)),
        structure=parts[0].structure,
        parts=parts,
        ends=ends,
    )


def _shape_of_examples(form: ArrayForm) -> str:
    """Structure, dtypes and shapes of a form's batches, without their number."""
    leaves = form.leaves(NO_ROWS)
    kinds = [f"{leaf.dtype.str} {leaf.dtype} {leaf.shape[1:]}" for leaf in leaves]
    return repr(form.structure(kinds))  # type: ignore[arg-type]


def _pictures(
    dataset: Any, images: Any, labels: Any, label_kind: str | None, channels: bool
) -> ArrayForm:
    """A torchvision dataset of (transform(PIL image), target_transform(label)).

    Its images are uint8 `(n, height, width)`, or with channels `(n, height, width, 3)`; its labels
    `(n, ...)`, of which it makes `label_kind` before their transform, or nothing if that is None.
    """
    shape = "(n, height, width, 3)" if channels else "(n, height, width)"
    known = isinstance(images, np.ndarray | torch.Tensor) and (
        str(images.dtype).removeprefix("torch.") == "uint8"
        and images.ndim == 3 + channels
        and images.shape[3:] == (3,) * channels
    )
    if not known:
        raise NoArrayForm(f"the pictures of {name_of(dataset)} are not uint8 {shape}")
    if label_kind == INT and not isinstance(labels, list):
        dtype = str(getattr(labels, "dtype", name_of(labels))).removeprefix("torch.")
        if dtype not in _INTEGERS:
            raise NoArrayForm(f"the labels of {name_of(dataset)} are {dtype}, not integers")
    transforms = [dataset.transform, dataset.target_transform]
    kinds = [PICTURE] + ([label_kind] if label_kind else [])
    return arrays_form(dataset, [images, labels], transforms, kinds=kinds)


_INTEGERS = ("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64")


@register_array_form(
    (f"{TV}.mnist", "MNIST"),
    (f"{TV}.mnist", "FashionMNIST"),
    (f"{TV}.mnist", "KMNIST"),
    (f"{TV}.mnist", "EMNIST"),
    (f"{TV}.usps", "USPS"),
)
def _mnist_family(dataset: Any) -> ArrayForm:
    return _pictures(dataset, dataset.data, dataset.targets, INT, channels=False)


@register_array_form((f"{TV}.mnist", "QMNIST"))
def _qmnist(dataset: Any) -> ArrayForm:
    labels, kind = (dataset.targets[:, 0], INT) if dataset.compat else (dataset.targets, None)
    return _pictures(dataset, dataset.data, labels, kind, channels=False)


@register_array_form((f"{TV}.semeion", "SEMEION"))
def _semeion(dataset: Any) -> ArrayForm:
    return _pictures(dataset, dataset.data, dataset.labels, INT, channels=False)


@register_array_form((f"{TV}.cifar", "CIFAR10"), (f"{TV}.cifar", "CIFAR100"))
def _cifar(dataset: Any) -> ArrayForm:
    return _pictures(dataset, dataset.data, dataset.targets, None, channels=True)


@register_array_form((f"{TV}.svhn", "SVHN"), (f"{TV}.stl10", "STL10"))
def _channels_come_first(dataset: Any) -> ArrayForm:
    images = dataset.data
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    return _pictures(dataset, images, dataset.labels, INT, channels=True)


@register_array_form(
    (f"{TV}.moving_mnist", "MovingMNIST"),
    (f"{TV}.phototour", "PhotoTour"),
)
def _without_labels(dataset: Any) -> ArrayForm:
    if type(dataset).__name__ == "PhotoTour" and not dataset.train:
        raise NoArrayForm("PhotoTour with train=False yields pairs of its pictures")
    return arrays_form(dataset, [dataset.data], [dataset.transform], structure=itemgetter(0))


@dataclass(frozen=True, kw_only=True)
class TableForm(ArrayForm):
    """Columns of an Arrow table, read where they lie: in memory or in mapped files."""

    shapes: dict[str, tuple[int, ...]]  # of one example's value, by column
    query: Callable[[Any], Any]  # from the numbers of rows, or a slice, to these as a table
    count: int  # of examples
    mapping: np.ndarray | None  # the row of the table for each example, where they are not the same

    def __len__(self) -> int:
        return self.count

    def leaves(self, indices: np.ndarray | slice) -> list[np.ndarray]:
        rows = indices if self.mapping is None else self.mapping[indices]
        table = self.query(rows if isinstance(rows, slice) else rows.tolist())
        return [_dense(table[name], shape) for name, shape in self.shapes.items()]


# To look for missing values in every column is not for each epoch. Tables never change.
_TABLES: "weakref.WeakKeyDictionary[Any, TableForm]" = weakref.WeakKeyDictionary()


@register_array_form(("datasets.arrow_dataset", "Dataset"))
def _hugging_face(dataset: Any) -> ArrayForm:
    shown = dataset.format
    if shown["type"] != "numpy":
        raise NoArrayForm(
            "a Hugging Face dataset yields arrays of one kind only in NumPy format, as "
            "with_format('numpy') makes it"
        )
    if shown["format_kwargs"]:
        raise NoArrayForm("a Hugging Face dataset with arguments for NumPy may yield any dtype")
    names = [name for name in dataset.column_names if name in shown["columns"]]
    if shown["output_all_columns"] and len(names) < len(dataset.column_names):
        raise NoArrayForm("a Hugging Face dataset with output_all_columns yields Python objects")
    if not names:
        raise NoArrayForm("a Hugging Face dataset without columns yields no arrays")
    table, mapped = dataset.data, dataset._indices  # there is no public way to the row mapping
    identity = (table, mapped, repr(names).encode())
    known = _TABLES.get(dataset)
    if known is not None and known.same_dataset(ArrayForm(name="", identity=identity)):
        return known
    formatting = importlib.import_module("datasets.formatting")
    form = TableForm(
        name="a Hugging Face dataset",
        identity=identity,
        structure=lambda leaves: dict(zip(names, leaves, strict=True)),
        shapes={name: _shape_of_values(table.table[name], name) for name in names},
        query=lambda rows: formatting.query_table(table, rows),
        count=len(dataset),
        mapping=None if mapped is None else mapped.column(0).to_numpy().astype(np.intp),
    )
    _TABLES[dataset] = form
    return form


def _shape_of_values(column: Any, name: str) -> tuple[int, ...]:
    """The shape that every value of a column has; reads no value, only lengths.

    Raises:
        NoArrayForm: the values are not numbers of one shape.
    """
    is_ = importlib.import_module("pyarrow").types
    compute = importlib.import_module("pyarrow.compute")
    shape: tuple[int, ...] = ()
    kind, chunks = _storage(column.type, column.chunks)
    while True:
        if any(chunk.null_count for chunk in chunks):
            raise NoArrayForm(f"the column {name!r} has missing values")
        if not (is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind)):
            break
        lengths = set()
        for chunk in chunks:
            if len(chunk):
                ends = compute.min_max(compute.list_value_length(chunk)).as_py()
                lengths |= set(ends.values())
        if len(lengths) > 1:
            raise NoArrayForm(
                f"the column {name!r} holds lists of {min(lengths)} to {max(lengths)} values"
            )
        shape += (lengths.pop() if lengths else 0,)
        kind, chunks = _storage(kind.value_type, [chunk.flatten() for chunk in chunks])
    if not (is_.is_integer(kind) or is_.is_floating(kind) or is_.is_boolean(kind)):
        what = str(kind).split("<")[0]
        raise NoArrayForm(f"the column {name!r} holds {what} values, not numbers of one shape")
    return shape


def _dense(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column as an array `(rows, *shape)`, in the dtype of the batches of NumPy's format."""
    kind, chunks = _storage(column.type, column.chunks)
    for _ in shape:
        kind, chunks = _storage(kind.value_type, [chunk.flatten() for chunk in chunks])
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    values = np.concatenate([np.empty(0, kind.to_pandas_dtype()), *arrays])
    dtype = {"f": np.dtype(np.float32), "b": np.dtype(bool)}.get(values.dtype.kind, np.dtype("i8"))
    return values.astype(dtype, copy=False).reshape(len(column), *shape)


def _storage(kind: Any, chunks: list[Any]) -> tuple[Any, list[Any]]:
    """What a column of an extension type (Array2D and the like) is stored as."""
    if hasattr(kind, "storage_type"):
        return kind.storage_type, [chunk.storage for chunk in chunks]
    return kind, chunks
