"""Every dataset that feedax knows: its batches from arrays against those from its examples."""

import subprocess
import sys
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
import torchvision.transforms as v1
from helpers import assert_same_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from torchvision.transforms import v2

from feedax.data import ArrayDataset, FlattenAndCast, NumpyLoader, numpy_collate
from feedax.data.array_form import array_form, register_arrays
from feedax.data.batch_transforms import NoArrayForm
from feedax.errors import PlanError

SCALED = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def check(dataset, examples=None):
    """Gathered batches are the dataset's, in any order, with repetitions, and all at once."""
    form = array_form(dataset)
    count = len(dataset)
    assert len(form) == count
    load = examples or (lambda rows: [dataset[i] for i in rows])
    for rows in ([count - 1, 0, 0, count // 2], [1], range(count)):
        assert_same_batch(form.take(np.array(rows)), numpy_collate(load(list(rows))))
    assert_same_batch(form.take(slice(None)), numpy_collate(load(list(range(count)))))
    assert form.same_dataset(array_form(dataset))
    return form


def vision(cls, data, labels=None, transform=None, target_transform=None, **attributes):
    """A torchvision dataset without its files: what its constructor would have read."""
    dataset = cls.__new__(cls)
    super(tv.VisionDataset, dataset).__init__()
    label_name = "labels" if cls in (tv.SVHN, tv.STL10, tv.SEMEION, tv.PhotoTour) else "targets"
    dataset.__dict__.update(
        {"data": data, label_name: labels, "transform": transform,
         "target_transform": target_transform, **attributes}
    )  # fmt: skip
    return dataset


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def digits(cls, **arguments):
    labels = torch.arange(9) % 4
    return vision(cls, torch.from_numpy(pixels(9, 5, 4)), labels, **arguments)


def qmnist(**arguments):
    labels = torch.arange(72).reshape(9, 8)
    return vision(tv.QMNIST, torch.from_numpy(pixels(9, 5, 4)), labels, **arguments)


DATASETS = {
    **{c.__name__: lambda c=c, **k: digits(c, **k)
       for c in (tv.MNIST, tv.FashionMNIST, tv.KMNIST, tv.EMNIST)},
    "QMNIST": lambda **k: qmnist(compat=True, **k),
    "QMNIST, all of the label": lambda **k: qmnist(compat=False, **k),
    "USPS": lambda **k: vision(tv.USPS, pixels(9, 5, 4), list(range(9)), **k),
    "SEMEION": lambda **k: vision(tv.SEMEION, pixels(9, 5, 4), np.arange(9), **k),
    "CIFAR10": lambda **k: vision(tv.CIFAR10, pixels(9, 3, 5, 4).transpose(0, 2, 3, 1),
                                  list(range(9)), **k),
    "CIFAR100": lambda **k: vision(tv.CIFAR100, pixels(9, 5, 4, 3), list(range(9)), **k),
    "SVHN": lambda **k: vision(tv.SVHN, np.asfortranarray(pixels(5, 4, 3, 9)).transpose(3, 2, 0, 1),
                               np.arange(9), **k),
    "STL10": lambda **k: vision(tv.STL10, pixels(9, 3, 5, 4).transpose(0, 1, 3, 2),
                                np.arange(9, dtype=np.uint8) - 1, **k),
}  # fmt: skip


@pytest.mark.parametrize("transform", [None, FlattenAndCast(), v1.ToTensor(), SCALED])
@pytest.mark.parametrize("name", DATASETS)
def test_torchvisions_pictures(name, transform):
    form = check(DATASETS[name](transform=transform))
    names = {None: "", SCALED: " with ToImage, ToDtype"}
    words = names.get(transform, f" with {type(transform).__name__}")
    assert form.name == name.split(",")[0] + words


@pytest.mark.parametrize("name", [n for n in DATASETS if "label" not in n])
def test_labels_are_transformed(name):
    check(DATASETS[name](target_transform=float))


@pytest.mark.parametrize("transform", [None, SCALED, v1.Normalize([0.5], [0.5])])
def test_single_tensors(transform):
    data = torch.from_numpy(pixels(6, 4, 1, 3, 3))
    if isinstance(transform, v1.Normalize):
        data = data.float()
    check(vision(tv.MovingMNIST, data, transform=transform))
    check(vision(tv.PhotoTour, data[:, 0, 0], transform=None, train=True))


def loader_reason(dataset):
    plan = NumpyLoader(dataset).plan()
    assert plan.name == "streamed"
    return plan.reason


WHY_NOT = [
    (vision(tv.MNIST, torch.zeros(2, 3, 3), torch.arange(2)),
     "the pictures of MNIST are not uint8 (n, height, width)"),
    (vision(tv.SVHN, pixels(2, 1, 3, 3), np.arange(2)),
     "the pictures of SVHN are not uint8 (n, height, width, 3)"),
    (vision(tv.MNIST, torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2)),
     "the labels of MNIST are float32, not integers"),
    (vision(tv.STL10, pixels(2, 3, 3, 3), None), "the labels of STL10 are NoneType, not integers"),
    (vision(tv.USPS, pixels(2, 3, 3), [1, 2.5]), "USPS holds a list, not a plain NumPy array"),
    (vision(tv.CIFAR10, pixels(2, 3, 3, 3), [1, 2**63]), "CIFAR10 holds integers beyond int64"),
    (vision(tv.CIFAR10, pixels(2, 3, 3, 3), [1, 2], target_transform=str),
     "the target_transform str is known for single examples only"),
    (vision(tv.PhotoTour, torch.zeros(2, 3, 3), train=False, matches=torch.zeros(1, 3)),
     "PhotoTour with train=False yields pairs of its pictures"),
    (vision(tv.MNIST, torch.zeros(3, 3, 3, dtype=torch.uint8), torch.arange(2)),
     "MNIST fails to load an example (index 2 is out of bounds for dimension 0 with size 2)"),
    (TensorDataset(torch.eye(3).to_sparse()),
     "TensorDataset holds a tensor that is not a plain one in the CPU's memory"),
    (ArrayDataset(np.zeros(2, "M8[s]"), np.zeros(2)),
     "the arrays of ArrayDataset hold datetime64[s], not numbers"),
    (ConcatDataset([TensorDataset(torch.zeros(2)), TensorDataset(torch.zeros(2).double())]),
     "the parts of ConcatDataset hold examples of different kinds"),
    (ConcatDataset([TensorDataset(torch.zeros(2)), TensorDataset(torch.zeros(2, 1))]),
     "the parts of ConcatDataset hold examples of different kinds"),
    (ConcatDataset([TensorDataset(torch.zeros(2)), range(3)]),
     "range may run any Python for an example"),
    (Subset(TensorDataset(torch.zeros(2)), [0, 2]),
     "an index of Subset lies outside its dataset"),
    (Subset(TensorDataset(torch.zeros(2)), np.array([0.5, 1])),
     "the indices of Subset are not whole numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "why"), WHY_NOT, ids=[why for _, why in WHY_NOT])
def test_what_streams_and_why(dataset, why):
    assert loader_reason(dataset) == why


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorDataset(torch.arange(9.0).reshape(3, 3).T, torch.arange(3)),
        lambda: TensorDataset(torch.nn.Parameter(torch.rand(3, 2)), torch.ones(3).bfloat16()),
        lambda: pixels(4, 2),
        lambda: torch.arange(4.0),
        lambda: ArrayDataset(np.arange(8, dtype=">f8").reshape(4, 2), np.arange(4, dtype=">i2")),
        lambda: ArrayDataset(pixels(4, 5, 4), np.arange(4), v1.ToTensor()),
    ],
)
def test_arrays_and_tensors(make):
    check(make())


def test_a_memory_map_is_gathered_without_reading_it_all(tmp_path):
    rows = 2**19  # 8 GiB, nearly all of it a hole in the file
    shape = (rows, 64, 64)
    inputs = np.memmap(tmp_path / "inputs", np.float32, "w+", shape=shape)
    inputs[[0, 7, rows - 1], 0, :2] = [[1, 2], [3, 4], [5, 6]]
    data = ArrayDataset(inputs, np.broadcast_to(np.arange(4), (rows, 4)), v2.ToImage())
    loader = NumpyLoader(data, batch_size=3, sampler=[7, rows - 1, 0])
    assert str(loader.plan()).startswith(
        "vectorised: all 524,288 examples of ArrayDataset with ToImage take 8,606.7 MB as arrays"
    )
    [(x, _)] = loader
    assert (type(x), x.shape) == (np.ndarray, (3, 1, 64, 64))
    assert x[:, 0, 0, :2].tolist() == [[3, 4], [5, 6], [1, 2]]
    small = ArrayDataset(inputs[:8], np.arange(8))
    assert NumpyLoader(small).plan().name == "resident"
    assert [type(leaf) for leaf in NumpyLoader(small).arrays()] == [np.ndarray] * 2


def nested(pieces):
    """A Concat of Subsets of a Concat, and so on."""
    parts = [
        ArrayDataset(np.full((n, 2), k, np.float32) + np.arange(n)[:, None], np.arange(n) + 100 * k)
        for k, n in enumerate(pieces)
    ]
    whole = ConcatDataset(parts)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
    return ConcatDataset([Subset(whole, order), parts[0], Subset(Subset(whole, [-1, 0, 1]), [2])])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(lambda n: sum(n) > 1), st.data())
def test_subsets_and_concats_of_each_other(pieces, draw):
    dataset = nested(pieces)
    form = array_form(dataset)
    rows = draw.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=12))
    assert_same_batch(form.take(np.array(rows)), numpy_collate([dataset[i] for i in rows]))
    everything = numpy_collate([dataset[i] for i in range(len(dataset))])
    assert_same_batch(form.take(slice(None)), everything)
    assert_same_batch(form.take(slice(1, None, 2)), [leaf[1::2].copy() for leaf in everything])


def test_a_concat_is_resident_and_random_split_too():
    data = ConcatDataset([digits(tv.MNIST, transform=SCALED), digits(tv.KMNIST, transform=SCALED)])
    plan = NumpyLoader(data).plan()
    assert plan.reason == (
        "all 18 examples of MNIST with ToImage, ToDtype and KMNIST with ToImage, ToDtype take "
        "0.0 MB as arrays and fit on the device"
    )
    check(random_split(data, [12, 6], torch.Generator().manual_seed(0))[1])
    data.datasets[0].data = data.datasets[0].data[:4]
    assert loader_reason(data) == (
        "a part of ConcatDataset has another length than when it was put there"
    )


def test_what_changes_an_identity():
    compose = v1.Compose([v1.ToTensor(), v1.Normalize([0.1], [0.2])])
    data = ConcatDataset(
        [digits(tv.MNIST, transform=compose), qmnist(compat=True, transform=compose)]
    )
    data = Subset(data, list(range(12)))
    seen = array_form(data)
    edits = [
        lambda: compose.transforms[1].std.__setitem__(0, 0.4),
        lambda: data.dataset.datasets[1].data.add_(1),
        lambda: data.dataset.datasets[1].targets.add_(1),
        lambda: data.dataset.datasets[0].targets.__setitem__(0, 3),
        lambda: data.indices.reverse(),
        lambda: setattr(data.dataset.datasets[0], "data", data.dataset.datasets[0].data.clone()),
        lambda: compose.transforms.append(FlattenAndCast()),
        lambda: setattr(data.dataset.datasets[0], "target_transform", int),
    ]  # fmt: skip
    for edit in edits:
        assert seen.same_dataset(array_form(data))
        edit()
        now = array_form(data)
        assert not seen.same_dataset(now)
        seen = now


Point = namedtuple("Point", ["place", "colour"])


class Own(Dataset):
    """A class of the user's."""

    def __init__(self, transform=None, count=5):
        self.inputs = torch.arange(count * 12.0).reshape(count, 1, 3, 4)
        self.targets = np.arange(count)[:, None].repeat(2, 1)
        self.transform = transform

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        x = self.inputs[index]
        return (x if self.transform is None else self.transform(x)), self.targets[index, 0]


def own_class(getitem, name="Mine"):
    return type(name, (Own,), {"__getitem__": getitem})


STRUCTURES = [
    (lambda s, i: s.inputs[i], lambda s: s.inputs),
    (lambda s, i: (s.inputs[i], s.targets[i]), lambda s: (s.inputs, s.targets)),
    (lambda s, i: [s.targets[i], (s.inputs[i],)], lambda s: [s.targets, (s.inputs,)]),
    (lambda s, i: {"b": s.inputs[i], "a": [s.targets[i]]},
     lambda s: {"b": s.inputs, "a": [s.targets]}),
    (lambda s, i: OrderedDict(x=Point(s.inputs[i], s.targets[i])),
     lambda s: OrderedDict(x=Point(s.inputs, s.targets))),
]  # fmt: skip


@pytest.mark.parametrize(("getitem", "arrays"), STRUCTURES)
def test_a_class_of_the_users_is_registered_in_one_line(getitem, arrays):
    cls = own_class(getitem)
    assert loader_reason(cls()) == "Mine may run any Python for an example"
    register_arrays(cls, arrays)
    check(cls())
    loader = NumpyLoader(Subset(cls(), [3, 1, 2]), batch_size=2)
    assert loader.plan().name == "resident"
    assert_same_batch(next(iter(loader)), numpy_collate([cls()[3], cls()[1]]))
    assert_same_batch(loader.arrays(), numpy_collate([cls()[i] for i in (3, 1, 2)]))


def test_its_transform_and_its_views_are_looked_at():
    register_arrays(Own, lambda d: (d.inputs, d.targets[:, 0]), transform=lambda d: d.transform)
    data = Own(v1.Normalize([0.5], [2.0]))
    form = check(data)
    assert form.name == "Own with Normalize"
    data.transform.mean[0] = 0.25
    assert not form.same_dataset(check(data))
    data.transform = v1.RandomErasing()
    assert loader_reason(data) == "the transform RandomErasing is known for single examples only"
    register_arrays(Own, lambda d: (d.inputs, 1 + d.targets[:, 0]))
    assert loader_reason(Own()) == "Own yields other examples than its arrays hold"


def test_a_subclass_of_a_registered_class_is_not_registered():
    register_arrays(Own, lambda d: (d.inputs, d.targets[:, 0]))
    assert loader_reason(own_class(Own.__getitem__, "Child")()) == (
        "Child may run any Python for an example"
    )


WRONG = [
    (lambda d: (d.inputs, d.targets[:3]),
     "hold one row for each of its 5 examples, and number 1 holds 3 rows; give all of them the "
     "dataset's length"),
    (lambda d: np.zeros(()),
     "hold one row for each of its 5 examples, and number 0 holds no rows; give all of them the "
     "dataset's length"),
    (lambda d: (d.inputs, "abc"),
     "be NumPy arrays or tensors in tuples, lists and dicts, and number 1 is a str; convert it "
     "once, when the dataset is made"),
    (lambda d: (), "be at least one, and there is none; return them from the function"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "what"), WRONG)
def test_arrays_that_are_no_examples_are_an_error(arrays, what):
    cls = own_class(Own.__getitem__)
    register_arrays(cls, arrays)
    for ask in (NumpyLoader(cls()).plan, lambda: iter(NumpyLoader(cls()))):
        with pytest.raises(PlanError) as error:
            ask()
        assert str(error.value) == f"register_arrays: the arrays of Mine must {what}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, len),
         "register_arrays: it must be given a dataset class, and it was given 5; register the "
         "class once, not each dataset"),
        ((Own, None),
         "register_arrays: arrays must be a function of a dataset, and it is None; write lambda "
         "data: ..."),
        ((Own, len, 5),
         "register_arrays: transform must be a function of a dataset, and it is 5; write lambda "
         "data: ..."),
    ],
)  # fmt: skip
def test_a_registration_that_makes_no_sense(arguments, message):
    cls, arrays, *transform = arguments
    with pytest.raises(PlanError) as error:
        register_arrays(cls, arrays, **({"transform": transform[0]} if transform else {}))
    assert str(error.value) == message


# Hugging Face's datasets.
@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("datasets")


@pytest.fixture
def table(hf, rng):
    features = hf.Features(
        {"image": hf.Array2D((3, 4), "uint8"), "y": hf.ClassLabel(names=list("abc")),
         "u": hf.Value("uint8"), "f": hf.Value("float64"), "h": hf.Value("float16"),
         "b": hf.Value("bool"), "fixed": hf.Sequence(hf.Value("float32"), length=2),
         "deep": hf.Sequence(hf.Sequence(hf.Value("int16")))}
    )  # fmt: skip
    columns = {
        "image": rng.integers(0, 256, (9, 3, 4)), "y": np.arange(9) % 3, "u": np.arange(9),
        "f": rng.normal(size=9), "h": rng.normal(size=9).astype(np.float16),
        "b": rng.random(9) < 0.5, "fixed": rng.normal(size=(9, 2)).astype(np.float32),
        "deep": rng.integers(-9, 9, (9, 2, 1)).tolist(),
    }  # fmt: skip
    return hf.Dataset.from_dict(columns, features=features).with_format("numpy")


TABLES = {
    "as it is": lambda hf, t: t,
    "two chunks": lambda hf, t: hf.concatenate_datasets([t, t.select(range(4))]),
    "shuffled": lambda hf, t: t.shuffle(seed=0),
    "selected": lambda hf, t: t.select([8, 1, 1, 4]),
    "a range": lambda hf, t: t.select(range(3, 7)),
    "some columns": lambda hf, t: t.with_format("numpy", columns=["y", "image"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_hugging_face_in_numpy_format(hf, table, name):
    data = TABLES[name](hf, table).with_format("numpy") if name != "some columns" else (
        TABLES[name](hf, table))  # fmt: skip
    check(data, data.__getitems__)  # which torch's loader asks for its batches
    loader = NumpyLoader(data, batch_size=4)
    assert loader.plan().reason == (
        f"all {len(data)} examples of a Hugging Face dataset take 0.0 MB as arrays and fit on the "
        "device"
    )
    streamed = NumpyLoader(data, batch_size=4, plan="streamed")
    for ours, expected in zip(loader, streamed, strict=True):
        assert_same_batch(ours, expected)
    check(Subset(data, [2, 0, 1]), Subset(data, [2, 0, 1]).__getitems__)


def test_a_change_of_format_is_seen(table):
    form = array_form(table)
    assert array_form(table) is form
    table.set_format("numpy", columns=["u"])
    assert not form.same_dataset(array_form(table))
    assert list(array_form(table).take(np.array([1]))) == ["u"]
    table.reset_format()
    with pytest.raises(NoArrayForm):
        array_form(table)


HF_WHY_NOT = [
    ({"x": [1]}, {"type": None},
     "a Hugging Face dataset yields arrays of one kind only in NumPy format, as "
     "with_format('numpy') makes it"),
    ({"x": [1]}, {"type": "numpy", "dtype": np.float32},
     "a Hugging Face dataset with arguments for NumPy may yield any dtype"),
    ({"x": [1], "y": [2]}, {"type": "numpy", "columns": ["x"], "output_all_columns": True},
     "a Hugging Face dataset with output_all_columns yields Python objects"),
    ({"x": [1]}, {"type": "numpy", "columns": []},
     "a Hugging Face dataset without columns yields no arrays"),
    ({"x": ["a"]}, {"type": "numpy"},
     "the column 'x' holds string values, not numbers of one shape"),
    ({"x": [{"a": 1}]}, {"type": "numpy"},
     "the column 'x' holds struct values, not numbers of one shape"),
    ({"x": [1, None]}, {"type": "numpy"}, "the column 'x' has missing values"),
    ({"x": [[1, 2], [1, None]]}, {"type": "numpy"}, "the column 'x' has missing values"),
    ({"x": [[1], [1, 2, 3]]}, {"type": "numpy"}, "the column 'x' holds lists of 1 to 3 values"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "form", "why"), HF_WHY_NOT)
def test_what_of_hugging_face_streams(hf, columns, form, why):
    data = hf.Dataset.from_dict(columns)
    data.set_format(**form)
    with pytest.raises(NoArrayForm) as error:
        array_form(data)
    assert str(error.value) == why


def test_images_of_hugging_face_stream(hf):
    from PIL import Image

    data = hf.Dataset.from_dict({"x": [Image.new("L", (2, 2))]}).with_format("numpy")
    assert loader_reason(data) == "the column 'x' holds struct values, not numbers of one shape"


def test_a_class_of_the_same_name_is_another_class(monkeypatch):
    fake = type("Dataset", (Own,), {"__module__": "datasets.arrow_dataset"})
    assert loader_reason(fake()) == "Dataset may run any Python for an example"


def test_neither_jax_nor_hugging_face_is_imported():
    code = "import sys, feedax.data; sys.exit(any(m in sys.modules for m in ('jax', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
