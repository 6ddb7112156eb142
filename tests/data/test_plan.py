"""Which plan a loader picks, in what words, and that a fast one is proven and never stale."""

import hashlib
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from helpers import write_idx
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from torchvision.transforms import Compose, Normalize, ToTensor

from feedax.data import (
    ArrayDataset,
    FlattenAndCast,
    NumpyLoader,
    Plan,
    numpy_collate,
    register_arrays,
)
from feedax.data.workers import start_method
from feedax.errors import ExampleError, PlanError

HAND = "Iterated by hand, it gathers each batch with NumPy, in the same order."
INT64 = "Its int64 values reach a device as int32 unless jax_enable_x64 is set."
HERE = "Examples are loaded in this process, one Python call each."


def equal(count):
    return f"{count} sampled examples came out equal to the dataset's own, bit for bit."


def arrays(count=20, transform=None):
    rng = np.random.default_rng(count)
    inputs = rng.integers(0, 256, (count, 4, 3), np.uint8)
    return ArrayDataset(inputs, rng.integers(0, 10, count), transform)


@pytest.fixture
def mnist(tmp_path):
    """Make a dataset of the MNIST family, of 30 pictures 5 x 4, read from files."""

    def make(cls=tv.MNIST, transform=None, **arguments):
        rng = np.random.default_rng(0)
        raw = tmp_path / cls.__name__ / "raw"
        raw.mkdir(parents=True)
        split = "emnist-digits-" if cls is tv.EMNIST else ""
        for part in ("train", "test" if split else "t10k"):
            images = rng.integers(0, 256, (30, 5, 4), np.uint8)
            write_idx(raw / f"{split}{part}-images-idx3-ubyte", images)
            write_idx(raw / f"{split}{part}-labels-idx1-ubyte", rng.integers(0, 10, 30, np.uint8))
        return cls(tmp_path, transform=transform, **arguments)

    return make


def cifar(tmp_path, monkeypatch, transform=None):
    """torchvision's CIFAR10 over two files of its own format with 8 pictures each."""
    folder = tmp_path / tv.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(1)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def part(name):
        labels = rng.integers(0, 10, 8).tolist()
        return write(name, {"data": rng.integers(0, 256, (8, 3072), np.uint8), "labels": labels})

    monkeypatch.setattr(tv.CIFAR10, "train_list", [part("data_batch_1"), part("data_batch_2")])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    return tv.CIFAR10(tmp_path, transform=transform)


def check_batches(loader, dataset):
    """The loader's batches are the dataset's examples as they are now."""
    start = 0
    for batch in loader:
        examples = [dataset[i] for i in range(start, min(start + loader.batch_size, len(dataset)))]
        for ours, expected in zip(batch, numpy_collate(examples), strict=True):
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            assert ours.tobytes() == expected.tobytes()
        start += len(batch[0])
    assert start == len(dataset)


@pytest.mark.parametrize("transform", [None, FlattenAndCast()])
@pytest.mark.parametrize("cls", [tv.MNIST, tv.FashionMNIST, tv.KMNIST, tv.EMNIST])
def test_the_mnist_family_is_resident(mnist, cls, transform):
    dataset = mnist(cls, transform, **({"split": "digits"} if cls is tv.EMNIST else {}))
    loader = NumpyLoader(dataset, batch_size=7)
    check_batches(loader, dataset)
    name = cls.__name__ + (" with FlattenAndCast" if transform else "")
    assert str(loader.plan()) == (
        f"resident: all 30 examples of {name} take 0.0 MB as arrays and fit on the device. "
        f"{equal(16)} {INT64} {HAND}"
    )
    assert loader.plan() == Plan("resident", loader.plan().reason, loader.plan().notes)


@pytest.mark.parametrize("transform", [None, FlattenAndCast()])
def test_cifar_is_resident_and_its_list_of_labels_may_change_in_place(
    tmp_path, monkeypatch, transform
):
    dataset = cifar(tmp_path, monkeypatch, transform)
    loader = NumpyLoader(dataset, batch_size=5)
    check_batches(loader, dataset)
    assert loader.plan().name == "resident"
    dataset.targets[3] += 1
    check_batches(loader, dataset)
    dataset.targets = np.array(dataset.targets, np.int32)
    check_batches(loader, dataset)
    assert loader.plan().name == "resident"


@pytest.mark.parametrize(
    "make",
    [
        lambda data: Subset(data, range(3, 17)),
        lambda data: Subset(data, np.array([5, -1, 5])),
        lambda data: Subset(data, torch.tensor([2, 4])),
        lambda data: random_split(data, [12, 8], torch.Generator().manual_seed(0))[1],
        lambda data: Subset(Subset(data, list(range(19, -1, -1))), [1, 0, 7]),
        lambda data: random_split(Subset(data, range(4, 20)), [0.5, 0.5])[0],
    ],
)
def test_subsets_are_resident(make):
    torch.manual_seed(0)
    subset = make(arrays())
    loader = NumpyLoader(subset, batch_size=3)
    check_batches(loader, subset)
    assert loader.plan().name == "resident"


def test_the_size_is_that_of_the_examples_and_the_budget_decides():
    data = arrays(20_000, FlattenAndCast())  # 12 float32 and one int64 each: 56 bytes
    says = "all 20,000 examples of ArrayDataset with FlattenAndCast take 1.1 MB as arrays"
    fits = NumpyLoader(data, memory_budget=1_120_000).plan()
    assert str(fits) == f"resident: {says} and fit on the device. {equal(16)} {INT64} {HAND}"
    over = NumpyLoader(data, memory_budget=1_119_999).plan()
    assert str(over) == (
        f"vectorised: {says}, over the budget of 1.1 MB for a device. {equal(16)} {INT64}"
    )
    asked = NumpyLoader(data, plan="vectorised", num_workers=2).plan()
    assert str(asked) == (
        f"vectorised: it was asked for; {says}. {equal(16)} {INT64} Its 2 workers are not started: "
        "there is nothing to load."
    )
    assert NumpyLoader(data, plan="resident", memory_budget=1).plan().name == "resident"


@pytest.mark.parametrize("count", range(1, 40))
def test_as_many_examples_are_sampled_as_the_plan_says(count):
    loaded = []
    data = TensorDataset(torch.arange(count))
    with pytest.MonkeyPatch.context() as patch:
        original = TensorDataset.__getitem__
        patch.setattr(
            TensorDataset, "__getitem__", lambda self, i: loaded.append(i) or original(self, i)
        )
        plan = NumpyLoader(data).plan()
    assert len(set(loaded)) == len(loaded) == min(16, count)
    assert {0, count - 1} <= set(loaded) <= set(range(count))
    assert equal(len(loaded)) in str(plan)


class Doctored(ArrayDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, -y


class Doubled(FlattenAndCast):
    def __call__(self, pic):
        return 2 * super().__call__(pic)


def doctored():
    whole = arrays()
    return Doctored(whole.inputs, whole.targets)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


class AnyPython(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


class Held(Dataset):
    """A class of the user's, which holds a row or an item for each of three examples."""

    def __init__(self, **held):
        vars(self).update(held)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[index]


@pytest.mark.parametrize(
    ("held", "function"),
    [
        ({"x": np.eye(3)}, "lambda data: data.x"),
        (
            {"x": torch.eye(3), "mean": np.zeros(2), "y": np.arange(3), "rate": np.array(0.5)},
            "lambda data: (data.x, data.y)",
        ),
        ({"x": np.eye(3), "labels": [0, 1, 2]}, "..."),
        ({"x": ["a.png", "b.png", "c.png"]}, None),
        ({"x": np.array(["a.png", "b.png", "c.png"])}, None),
    ],
)
def test_the_plan_of_a_class_that_holds_arrays_names_the_line_that_registers_it(held, function):
    line = f"feedax.register_arrays(Held, {function}) makes a faster plan."
    said = f"streamed: Held may run any Python for an example. {HERE}"
    said += f" If its examples are of these arrays in this order, {line}" if function else ""
    assert str(NumpyLoader(Held(**held)).plan()) == said
    assert str(NumpyLoader(Subset(Held(**held), [1])).plan()) == said


WORKERS = {"num_workers": 2, "worker_init_fn": print}
OBSTACLES = {
    "a subclass": (doctored, {}, "Doctored may run any Python for an example"),
    "a subset of one": (
        lambda: Subset(doctored(), [1]), {}, "Doctored may run any Python for an example"),
    "a transform's subclass": (
        lambda: arrays(transform=Doubled()), {},
        "the transform Doubled is known for single examples only"),
    "a function": (
        lambda: arrays(transform=np.sqrt), {},
        "the transform ufunc is known for single examples only"),
    "one of several": (
        lambda: arrays(transform=Compose([FlattenAndCast(), np.sqrt])), {},
        "the transform ufunc is known for single examples only"),
    "a part of a concatenation": (
        lambda: ConcatDataset([arrays(), doctored()]), {},
        "Doctored may run any Python for an example"),
    "objects": (
        lambda: ArrayDataset(np.array([{}, []], object), np.zeros(2)), {},
        "the arrays of ArrayDataset hold Python objects"),
    "text": (
        lambda: ArrayDataset(np.zeros(2), np.array(["a", "b"])), {},
        "the arrays of ArrayDataset hold text"),
    "tensors as arrays": (
        lambda: ArrayDataset(np.zeros(2), torch.zeros(2)), {},
        "ArrayDataset holds a Tensor, not a plain NumPy array"),
    "empty": (lambda: arrays(0), {}, "the dataset is empty"),
    "any Python": (AnyPython, {}, "AnyPython may run any Python for an example"),
    "iterable": (Stream, {}, "an IterableDataset has no indices to gather by"),
    "no batches": (arrays, {"batch_size": None}, "batch_size=None asks for single examples"),
    "collate_fn": (
        arrays, {"collate_fn": list}, "a collate_fn of your own wants to see the examples"),
    "worker_init_fn": (arrays, WORKERS, "a worker_init_fn may change what the workers load"),
}  # fmt: skip


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_cannot_be_gathered_is_streamed_and_the_plan_says_why(case):
    make, arguments, why = OBSTACLES[case]
    dataset = make()
    note = HERE
    if "num_workers" in arguments:
        method = start_method(arguments.get("multiprocessing_context"))
        note = f"Examples are loaded by 2 worker processes (started by {method})."
    if case in ("a subclass", "a subset of one"):
        note += (
            " If its examples are of these arrays in this order, feedax.register_arrays(Doctored, "
            "lambda data: (data.inputs, data.targets)) makes a faster plan."
        )
    if case == "iterable":
        note += " It has no state_dict: to resume from a position, it is loaded again."
    assert str(NumpyLoader(dataset, **arguments).plan()) == f"streamed: {why}. {note}"
    for plan in ("resident", "vectorised"):
        loader = NumpyLoader(dataset, plan=plan, **arguments)
        for ask in (loader.plan, partial(iter, loader)):
            with pytest.raises(PlanError) as error:
                ask()
            assert str(error.value) == (
                f"NumpyLoader: plan='{plan}' needs a dataset whose batches can be gathered from "
                f"arrays, and {why}; leave it out, or give plan='streamed'"
            )


def test_numpy_collate_by_name_is_the_loaders_own_and_so_is_a_worker_init_fn_without_workers():
    arguments = {"collate_fn": numpy_collate, "worker_init_fn": print}
    assert NumpyLoader(arrays(), **arguments).plan().name == "resident"


def test_an_unknown_plan_is_refused():
    with pytest.raises(PlanError) as error:
        NumpyLoader(arrays(), plan="fast")
    assert str(error.value) == (
        "NumpyLoader: plan must be 'auto' or one of 'resident', 'vectorised', 'streamed', and it "
        "is 'fast'; leave it out for the fastest one"
    )


def test_where_torch_chooses_how_workers_start(monkeypatch):
    monkeypatch.setattr("feedax.data.workers.HAS_OWN_WORKERS", False)
    loader = NumpyLoader(AnyPython(), num_workers=1)
    assert loader.multiprocessing_context is None
    assert loader.plan().notes == (
        "Examples are loaded by 1 worker processes (started by "
        f"{torch.multiprocessing.get_start_method()})",
    )


# The proof: the class is known, and what it yields is not what its arrays hold.
@pytest.mark.parametrize("index", [0, 19])
def test_a_class_that_yields_other_examples_is_found_out(monkeypatch, index):
    original = ArrayDataset.__getitem__

    def one_differs(self, i):
        x, y = original(self, i)
        return x, y + (i == index)

    monkeypatch.setattr(ArrayDataset, "__getitem__", one_differs)
    loader = NumpyLoader(arrays(), batch_size=20)
    why = "ArrayDataset yields other examples than its arrays hold"
    assert str(loader.plan()) == f"streamed: {why}. {HERE}"
    [batch] = loader
    assert (batch[1] - loader.dataset.targets).tolist() == [i == index for i in range(20)]
    monkeypatch.setattr(ArrayDataset, "__getitem__", original)
    assert loader.plan().name == "streamed"  # the dataset it looked at has not changed


@pytest.mark.parametrize("bit", ["dtype", "shape", "negative zero", "another field"])
def test_examples_must_be_equal_to_the_bit(monkeypatch, bit):
    data = ArrayDataset(np.zeros((4, 1), np.float32), np.arange(4))
    change = {
        "dtype": lambda x, y: (x, np.uint64(y)),
        "shape": lambda x, y: (x[0], y),
        "negative zero": lambda x, y: (-x, y),
        "another field": lambda x, y: (x, y, y),
    }[bit]
    original = ArrayDataset.__getitem__
    monkeypatch.setattr(ArrayDataset, "__getitem__", lambda self, i: change(*original(self, i)))
    assert NumpyLoader(data).plan().name == "streamed"


def states():
    _, words, position, *_ = np.random.get_state()
    return random.getstate(), words.tolist(), position, torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.random, partial(torch.rand, 1)],
    ids=["Python", "NumPy", "torch"],
)
def test_a_dataset_that_draws_is_streamed_and_the_random_states_are_put_back(monkeypatch, draw):
    original = FlattenAndCast.__call__
    monkeypatch.setattr(FlattenAndCast, "__call__", lambda self, x: (draw(), original(self, x))[1])
    before = states()
    plan = NumpyLoader(arrays(transform=FlattenAndCast())).plan()
    assert str(plan) == f"streamed: ArrayDataset draws random numbers for its examples. {HERE}"
    assert states() == before


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.PCG64, np.random.Philox])
@pytest.mark.parametrize("draws", [False, True])
def test_numpys_global_generator_may_be_of_any_kind(bits, draws):
    class Arrays(ArrayDataset):
        def __getitem__(self, index):
            if draws:
                np.random.random()
            return super().__getitem__(index)

    register_arrays(Arrays, lambda data: (data.inputs, data.targets))
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(bits(0))
    try:
        plan = NumpyLoader(Arrays(np.zeros((9, 2)), np.zeros(9))).plan()
    finally:
        np.random.set_bit_generator(before)
    assert plan.name == ("streamed" if draws else "resident")
    assert ("draws random numbers" in plan.reason) is draws


def test_asking_for_the_plan_moves_no_random_state():
    generator = torch.Generator().manual_seed(0)
    before = states(), generator.get_state().tolist()
    for plan in ("auto", "resident", "vectorised", "streamed"):
        NumpyLoader(arrays(), shuffle=True, generator=generator, plan=plan).plan()
    assert (states(), generator.get_state().tolist()) == before


def changes(dataset):
    """Everything that people do to a dataset between two epochs."""
    yield "resident", setattr(dataset, "transform", FlattenAndCast())
    yield "streamed", setattr(dataset, "transform", Doubled())
    yield "streamed", setattr(dataset, "transform", FlattenAndCast().__call__)
    yield "resident", setattr(dataset, "transform", Compose([ToTensor(), Normalize([0.1], [0.3])]))
    yield "resident", dataset.transform.transforms[1].mean.__setitem__(0, 0.2)
    yield "streamed", dataset.transform.transforms.append(torch.neg)
    yield "resident", dataset.transform.transforms.pop()
    yield "resident", setattr(dataset, "transform", None)
    yield "resident", setattr(dataset, "target_transform", float)
    yield "streamed", setattr(dataset, "target_transform", abs)
    yield "resident", setattr(dataset, "target_transform", None)
    yield "resident", setattr(dataset, "data", 255 - dataset.data)
    yield "resident", dataset.data.mul_(3)
    yield "resident", dataset.targets.add_(1)
    yield "resident", setattr(dataset, "targets", dataset.targets.to(torch.uint8))
    yield "resident", dataset.targets.add_(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_change_between_epochs_is_seen(mnist, workers):
    dataset = mnist()
    loader = NumpyLoader(dataset, batch_size=8, num_workers=workers)
    check_batches(loader, dataset)
    for expected, _ in changes(dataset):
        assert loader.plan().name == expected
        if expected == "resident" or not workers:  # an epoch with workers is tested elsewhere
            check_batches(loader, dataset)
        if expected == "resident":
            assert loader.arrays()[1].tolist() == dataset.targets.tolist()
            check_batches(loader.sequential(), dataset)


@pytest.mark.parametrize("indices", [list(range(10)), np.arange(10)])
def test_rows_of_a_subset_may_change_in_place(indices):
    subset = Subset(arrays(), indices)
    loader = NumpyLoader(subset, batch_size=4)
    check_batches(loader, subset)
    indices[:] = indices[::-1]
    check_batches(loader, subset)
    indices[2] = 19
    check_batches(loader, subset)


def test_tensors_and_arrays_may_change_in_place():
    with torch.inference_mode():
        features = torch.arange(6.0)
    tensors = TensorDataset(features, torch.arange(6))
    data = arrays(6)
    loaders = [NumpyLoader(dataset, batch_size=4) for dataset in (tensors, data)]
    for _ in range(2):
        for loader in loaders:
            check_batches(loader, loader.dataset)
            assert loader.plan().name == "resident"
        tensors.tensors[1].neg_()
        data.inputs[:] = 255 - data.inputs
    tensors.tensors = (torch.ones(3),)
    check_batches(loaders[0], tensors)


def test_the_plan_is_chosen_once_while_nothing_changes(monkeypatch):
    loader = NumpyLoader(arrays(), batch_size=4)
    list(loader)
    monkeypatch.setattr(ArrayDataset, "__getitem__", None)  # neither proof nor batches need it
    for _ in range(2):
        assert len(list(loader)) == len(list(loader.index_batches())) == 5


def test_a_dataset_that_loads_whole_batches_is_proven_by_them(monkeypatch):
    data = arrays()
    monkeypatch.setattr(
        ArrayDataset, "__getitems__", lambda self, rows: [self[0] for _ in rows], raising=False
    )
    why = "ArrayDataset yields other examples than its arrays hold"
    assert NumpyLoader(data).plan().reason == why


def test_a_dataset_whose_examples_fail_is_streamed_and_fails_there():
    data = arrays()
    data.targets = data.targets[:4]
    loader = NumpyLoader(data)
    before = states()
    assert loader.plan().reason == (
        "ArrayDataset fails to load an example (index 4 is out of bounds for axis 0 with size 4)"
    )
    assert states() == before
    with pytest.raises(IndexError):
        list(loader)


@pytest.mark.parametrize(
    ("dtypes", "said"),
    [
        (("float32", "int32"), ()),
        (("float64", "uint8"), ("Its float64 values reach a device as float32 unless",)),
        (("uint64", "complex128"),
         ("Its complex128 and uint64 values reach a device as complex64 and uint32 unless",)),
    ],
)  # fmt: skip
def test_the_plan_says_when_a_device_narrows_values(dtypes, said):
    data = ArrayDataset(*(np.zeros(3, dtype) for dtype in dtypes))
    expected = tuple(f"{words} jax_enable_x64 is set" for words in said)
    assert NumpyLoader(data, plan="vectorised").plan().notes[1:] == expected
    streamed = NumpyLoader(data, plan="streamed")
    assert len(streamed.plan().notes) == 1
    next(iter(streamed))  # a batch tells what it holds
    assert streamed.plan().notes[1:] == expected


class Told(Dataset):
    def __init__(self, example):
        self.example = example

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.example


TEXT = "text: kept as a list, which does not go to a device"


@pytest.mark.parametrize(
    ("example", "notes"),
    [
        (np.float32(1), []),
        ((np.float32(1), 3), [INT64[:-1]]),
        ("a", [f"An example is {TEXT}"]),
        ({"x": np.uint8(1), "name": b"a"}, [f"Its field ['name'] is {TEXT}"]),
        (("a", ["b"]),
         ["Its fields [0] and [1][0] are text: kept as lists, which do not go to a device"]),
    ],
)  # fmt: skip
def test_the_first_batch_tells_of_the_way_to_a_device(example, notes):
    loader = NumpyLoader(Told(example), batch_size=2)
    assert loader.plan().notes == (HERE[:-1],)
    next(iter(loader))
    assert loader.plan().notes == (HERE[:-1], *notes)


class Random(Dataset):
    """Pairs (index, a number that is another one each time, if it is so wished)."""

    def __init__(self, is_random=False, count=50):
        self.is_random, self.count, self.loaded = is_random, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.loaded.append(index)
        return {"x": np.float32([index] * 3)}, random.random() if self.is_random else index / 2


@pytest.mark.parametrize("budget", [2**31, 100])
def test_a_cache_loads_every_example_once_and_a_few_again(budget):
    def epochs(data, **arguments):
        torch.manual_seed(5)
        loader = NumpyLoader(
            data, 8, shuffle=True, drop_last=True, memory_budget=budget, **arguments
        )
        for _ in range(3):
            yield [(x["x"].tobytes(), y.tobytes()) for x, y in loader], loader.plan()

    data = Random()
    kept = list(epochs(data, cache=True))
    assert [batches for batches, _ in kept] == [batches for batches, _ in epochs(Random())]
    name = "resident" if budget > 100 else "vectorised"
    assert [plan.name for _, plan in kept] == [name] * 3
    # Two were left out by drop_last, and loaded when the epoch had ended.
    assert sorted(data.loaded[:50]) == list(range(50))
    assert len(data.loaded) == 50 + 2 * 4
    assert "A few of them are loaded again in each epoch" in kept[0][1].notes


def test_a_cache_finds_a_dataset_that_is_random_or_was_edited():
    random.seed(3)
    loader = NumpyLoader(Random(is_random=True), 10, cache=True)
    list(loader)
    index = random.Random(1).sample(range(50), 4)[0]
    with pytest.raises(ExampleError) as error:
        iter(loader)
    assert str(error.value) == (
        "NumpyLoader: with cache=True an example must be the same each time it is loaded, and "
        f"example {index} of Random has changed; leave cache out if the dataset is random, or call "
        "refresh() if it was edited"
    )
    loader.dataset.is_random = False
    loader.refresh()
    assert loader.plan().name == "streamed"
    assert [list(y) for _, y in loader] == [list(y) for _, y in loader]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"plan": "streamed"}, "plan='streamed' asks to load them every time"),
        ({"collate_fn": len}, "a collate_fn of your own hides them"),
        ({"batch_size": None}, "batch_size=None makes no batches"),
    ],
)
def test_what_cannot_be_kept(arguments, reason):
    with pytest.raises(PlanError) as error:
        NumpyLoader(Random(), cache=True, **arguments)
    assert str(error.value) == (
        f"NumpyLoader: cache=True keeps examples by their indices, and {reason}; leave it out"
    )


def test_text_cannot_be_kept():
    with pytest.raises(PlanError) as error:
        list(NumpyLoader(Told((1, "a")), cache=True))
    assert str(error.value) == (
        "NumpyLoader: cache=True keeps examples made of numbers in arrays, in tuples, lists and "
        "dicts, and a batch holds a str; leave it out, or let the dataset yield numbers only"
    )


def test_refresh_sees_an_array_that_was_edited_in_place():
    data = arrays()
    loader = NumpyLoader(data, 20)
    plan = loader.plan()
    data.inputs[:] = 7
    assert loader.plan() is plan
    loader.refresh()
    assert loader.plan() is not plan
    assert (next(iter(loader))[0] == 7).all()
