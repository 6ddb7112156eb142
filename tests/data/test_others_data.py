"""Data that others make: Hugging Face, WebDataset, ImageFolder, and torch's other samplers."""

import gc
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import webdataset
from helpers import slow
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, WeightedRandomSampler
from torchvision.datasets import ImageFolder

import feedax
from feedax.data import ArrayDataset, FlattenAndCast, NumpyLoader, numpy_collate

COUNT = 11
RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(COUNT, 2, 3)).astype(np.float32)
WORDS = [f"word {i}" for i in range(COUNT)]


def table(hugging_face: ModuleType):
    """Rows of a matrix, a number that is the row's index, and a text."""
    columns = {"x": POINTS.tolist(), "i": list(range(COUNT)), "word": WORDS}
    features = hugging_face.Features(
        x=hugging_face.Array2D((2, 3), "float32"),
        i=hugging_face.Value("int64"),
        word=hugging_face.Value("string"),
    )
    return hugging_face.Dataset.from_dict(columns, features)


def as_numpy(batch):
    """A batch of torch's own loader, its tensors as arrays."""
    if isinstance(batch, dict):
        return {key: as_numpy(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [as_numpy(value) for value in batch]
    return batch.numpy() if isinstance(batch, torch.Tensor) else batch


def assert_same(ours, theirs):
    """Equal trees: containers, order, dtypes and every bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


def epochs(cls, dataset, count=2, **arguments):
    generator = torch.Generator().manual_seed(3)
    loader = cls(dataset, batch_size=4, generator=generator, **arguments)
    return [list(loader) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "workers"), [("numpy", 0), ("torch", 0), slow("numpy", 2), ("torch", 2)]
)
def test_a_hugging_face_table_gives_torchs_batches(hugging_face, kind, workers):
    data = table(hugging_face).with_format(kind)
    theirs = [as_numpy(epoch) for epoch in epochs(DataLoader, data, shuffle=True)]
    assert_same(epochs(NumpyLoader, data, shuffle=True, num_workers=workers), theirs)
    for first in theirs[0]:
        assert_same(first["x"], POINTS[first["i"]])
        assert first["word"] == [f"word {i}" for i in first["i"]]


def test_a_hugging_face_table_of_plain_python(hugging_face):
    data = table(hugging_face).remove_columns("x")
    [whole] = NumpyLoader(data, batch_size=COUNT)
    assert_same(whole, {"i": np.arange(COUNT), "word": WORDS})


def doubled(rows):
    """A transform of a whole batch, as Hugging Face wants it."""
    return {"twice": [2 * np.asarray(x, np.float32) for x in rows["x"]], "i": rows["i"]}


def test_a_hugging_face_table_selected_and_transformed(hugging_face):
    data = table(hugging_face).select(range(8, 1, -1)).with_transform(doubled)
    [whole] = NumpyLoader(data, batch_size=COUNT)
    assert_same(whole, {"twice": 2 * POINTS[8:1:-1], "i": np.arange(8, 1, -1)})


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]),
        # A shard a worker, rows 0 to 5 and 6 to 10; the workers' batches come in turn.
        (2, [[0, 1, 2, 3], [6, 7, 8, 9], [4, 5], [10]]),
    ],
)
def test_a_hugging_face_stream_is_shared_out_among_workers(hugging_face, workers, expected):
    stream = table(hugging_face).with_format("numpy").to_iterable_dataset(num_shards=2)
    loader = NumpyLoader(stream, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert [batch["i"].tolist() for batch in batches] == expected
    for batch in batches:
        assert_same(batch["x"], POINTS[batch["i"]])
        assert batch["word"] == [f"word {i}" for i in batch["i"]]
    assert loader.plan().name == "streamed"


def jpeg(i: int) -> bytes:
    """A small JPEG: the first half of them dark, the rest bright."""
    low = 0 if i < COUNT // 2 else 160
    pixels = np.random.default_rng(i).integers(low, low + 96, (10, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def decoded(i: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg(i))))


left_open = pytest.mark.filterwarnings(r"ignore:unclosed file .*shard-\d\.tar:ResourceWarning")
"""WebDataset does not close its tar files: that is left to the garbage collector."""


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[str]]:
    """Two tar files: examples 0 to 5, and 6 to 10."""
    paths = []
    for number, indices in enumerate([range(6), range(6, COUNT)]):
        paths.append(str(tmp_path / f"shard-{number}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for i in indices:
                for name, content in ((f"{i:03}.jpg", jpeg(i)), (f"{i:03}.cls", str(i).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    yield paths
    gc.collect()  # while `left_open` holds


@left_open
@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]),
        (2, [[0, 1, 2, 3], [6, 7, 8, 9], [4, 5], [10]]),
    ],
)
def test_a_webdataset_is_shared_out_among_workers(shards, workers, expected):
    data = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    loader = NumpyLoader(data, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert [labels.tolist() for _, labels in batches] == expected
    for images, labels in batches:
        assert_same(images, np.stack([decoded(i) for i in labels]))
    assert loader.plan().name == "streamed"


@left_open
def test_a_webdataset_that_makes_its_own_batches(shards):
    data = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")
    data = data.to_tuple("jpg", "cls").batched(4)
    theirs = [as_numpy(batch) for batch in DataLoader(data, batch_size=None)]
    ours = [list(batch) for batch in NumpyLoader(data, batch_size=None)]
    assert [len(images) for images, _ in ours] == [4, 4, 3]
    assert_same(ours, theirs)
    assert_same(ours[1][0], np.stack([decoded(i) for i in range(4, 8)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageFolder's folder: five dark pictures and six bright ones."""
    for i in range(COUNT):
        path = tmp_path / ("dark" if i < COUNT // 2 else "light") / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(i))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", [None, FlattenAndCast()], ids=["pictures", "vectors"])
def test_an_image_folder_gives_torchs_batches(folder, transform, workers):
    data = ImageFolder(folder, transform)
    theirs = epochs(DataLoader, data, shuffle=True, collate_fn=numpy_collate)
    assert_same(epochs(NumpyLoader, data, shuffle=True, num_workers=workers), theirs)
    [(images, labels)] = NumpyLoader(data, batch_size=COUNT, num_workers=0)
    expected = np.stack([decoded(i) for i in range(COUNT)])
    if transform is not None:
        expected = expected.reshape(COUNT, -1).astype(np.float32)
    assert_same(images, expected)
    assert labels.tolist() == [0] * 5 + [1] * 6


def predict(params, x):
    w, b = params
    return w * x.mean() / 255 + b


def test_fit_learns_from_an_image_folder_what_it_learns_from_torchs_loader(folder):
    import optax  # here, so that no worker imports it

    data = ImageFolder(folder, FlattenAndCast())

    def fitted(cls, **arguments):
        weights = [1.0] * 5 + [2.0] * 6
        generator = torch.Generator().manual_seed(7)
        loader = cls(
            data,
            batch_size=4,
            sampler=WeightedRandomSampler(weights, 30, generator=generator),
            **arguments,
        )
        start = np.float32([0, 0]), np.float32([0, 0])
        whole = NumpyLoader(data, batch_size=4)
        return feedax.fit(predict, start, loader, epochs=40, optimizer=optax.sgd(1.0),
                          evaluate={"all": whole})  # fmt: skip

    ours, history = fitted(NumpyLoader, num_workers=2, persistent_workers=True)
    theirs, _ = fitted(DataLoader, collate_fn=numpy_collate)
    assert history[-1]["all_accuracy"] == 1
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_weighted_sampler_draws_as_in_torch(folder, workers):
    data = ImageFolder(folder)
    weights = [4.0 if target == 0 else 0.5 for target in data.targets]

    def drawn(cls, **arguments):
        sampler = WeightedRandomSampler(weights, 14, generator=torch.Generator().manual_seed(1))
        return epochs(cls, data, sampler=sampler, **arguments)

    theirs = drawn(DataLoader, collate_fn=numpy_collate)
    assert_same(drawn(NumpyLoader, num_workers=workers), theirs)
    labels = np.concatenate([labels for epoch in theirs for _, labels in epoch])
    assert (labels.size, int((labels == 0).sum()) > 14) == (28, True)


@pytest.mark.parametrize(
    ("plan", "workers"), [("resident", 0), ("vectorised", 0), ("streamed", 0), ("streamed", 2)]
)
def test_a_distributed_sampler_gives_each_rank_torchs_share(plan, workers):
    data = ArrayDataset(POINTS, np.arange(COUNT))

    def shares(cls, **arguments):
        ranks = []
        for rank in range(2):
            sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=6)
            loader = cls(data, batch_size=4, sampler=sampler, **arguments)
            ranks.append([])
            for epoch in range(2):
                sampler.set_epoch(epoch)
                ranks[-1].append(list(loader))
        return ranks

    theirs = shares(DataLoader, collate_fn=numpy_collate)
    assert_same(shares(NumpyLoader, plan=plan, num_workers=workers), theirs)
    for epoch in range(2):
        seen = np.concatenate([labels for rank in theirs for _, labels in rank[epoch]])
        assert sorted({*seen}) == list(range(COUNT))
        assert len(seen) == COUNT + 1  # both ranks have as many: one example comes twice
