"""What `loader.py` compares: datasets, the loaders that feed from them, and the limits.

A contender is a function of the scenario's folder that makes a loader: something that can be
iterated once an epoch and yields batches of two arrays or tensors. Whatever a peer needs is
imported in its own function, so that nobody else's process (or worker) has JAX in it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

import feedax.datasets
from feedax.data import FlattenAndCast, NumpyLoader, numpy_collate

WORKERS = 2
NEVER_SLOWER = 0.95
"""In no scenario may feedax fall below this share of torch's rate."""


class SkippedError(Exception):
    """This contender cannot take part here; says why."""


@dataclass(frozen=True)
class Contender:
    """One loader among those of a scenario.

    Attributes:
        name: for the tables.
        make: makes the loader, given the scenario's folder.
        reads_ahead: whether it goes on to load the next epoch when one has ended. It is then given
            an epoch before the clock starts, which uses up its head start, and a rest after.
    """

    name: str
    make: Callable[[Path], Iterable[Any]]
    reads_ahead: bool = False


@dataclass(frozen=True)
class Limit:
    """A contender's rate over the best median rate of some others must reach `at_least`.

    Attributes:
        at_least: the limit, or None for a ratio that is only shown.
        reason: why it may be missed, in a sentence.
    """

    contender: str
    others: Sequence[Contender]
    at_least: float | None
    reason: str = ""

    @property
    def against(self) -> tuple[str, ...]:
        return tuple(contender.name for contender in self.others)


@dataclass(frozen=True)
class Scenario:
    """One comparison.

    Attributes:
        name: for ``--only``.
        title: for the tables.
        contenders: one whose name ends in "again" is the same as another, for the A/A row.
        limits: on ratios of their rates.
        prepare: writes what the datasets read into the scenario's folder, once.
        random: whether the examples are drawn at random, so that only labels can be compared.
        starts: whether the time to a new iterator's first batch is measured, not the feeding.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    limits: tuple[Limit, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    random: bool = False
    starts: bool = False

    @property
    def unit(self) -> str:
        return "starts/s" if self.starts else "examples/s"


# Datasets.


class Pictures(Dataset[Any]):
    """Pictures of 224 x 224 x 3 uint8 in memory, 64 of them over and over, each time with a label
    of its own. Nothing is computed: what is timed is how batches travel.
    """

    def __init__(self, count: int, tensors: bool = False) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
        self.pictures: Any = torch.from_numpy(pixels) if tensors else pixels
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pictures[index % len(self.pictures)], index


def mnist(folder: Path) -> Dataset[Any]:
    return feedax.datasets.mnist()


def turned_and_shifted(folder: Path) -> Dataset[Any]:
    """10,000 digits of MNIST, each turned and shifted at random every time it is loaded."""
    turn_and_shift = transforms.RandomAffine(degrees=15, translate=(0.1, 0.1))
    transform = transforms.Compose([turn_and_shift, FlattenAndCast()])
    return Subset(feedax.datasets.mnist(transform=transform), range(10_000))


def pictures(folder: Path) -> Dataset[Any]:
    return Pictures(16 * 256)


def few_pictures(folder: Path) -> Dataset[Any]:
    return Pictures(256)


def pictures_as_tensors(folder: Path) -> Dataset[Any]:
    return Pictures(16 * 256, tensors=True)


def write_jpegs(folder: Path, count: int = 1280) -> None:
    """JPEGs of 320 x 240 pixels in eight classes: smooth shapes under a little noise."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:240, :320][..., None]
    for i in range(count):
        waves = np.sin(down / rng.uniform(9, 60, 3)) + np.cos(across / rng.uniform(9, 60, 3))
        pixels = 128 + 50 * waves + rng.normal(0, 6, (240, 320, 1))
        label = folder / f"class {i % 8}"
        label.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(label / f"{i:05}.jpg", quality=90)


def as_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def jpegs(folder: Path) -> Dataset[Any]:
    return ImageFolder(folder, transform=as_array)


# Contenders.


def tutorial_collate(batch: Sequence[Any]) -> Any:
    """The collate function of the JAX tutorial's first form: stacks, and walks into tuples."""
    if isinstance(batch[0], np.ndarray):
        return np.stack(batch)
    if isinstance(batch[0], tuple | list):
        return [tutorial_collate(samples) for samples in zip(*batch, strict=True)]
    return np.array(batch)


COLLATES = {
    "numpy_collate": numpy_collate,
    "the tutorial's collate": tutorial_collate,
    "default_collate": default_collate,
}

Data = Callable[[Path], Dataset[Any]]


def ours(data: Data, batch_size: int, workers: int = 0, name: str = "feedax", **more: Any) -> Any:
    """feedax's loader."""

    def make(folder: Path) -> Iterable[Any]:
        arguments = {"persistent_workers": workers > 0, **more}
        return NumpyLoader(data(folder), batch_size, shuffle=True, num_workers=workers, **arguments)

    return Contender(name, make)


def torchs(data: Data, batch_size: int, collate: str, workers: int = 0, **more: Any) -> Contender:
    """torch's loader, its workers started as torch starts them."""
    again = more.pop("again", False)
    how = more.get("multiprocessing_context", "")

    def make(folder: Path) -> Iterable[Any]:
        return DataLoader(
            data(folder),
            batch_size,
            shuffle=True,
            num_workers=workers,
            collate_fn=COLLATES[collate],
            **{"persistent_workers": workers > 0, **more},
        )

    name = f"torch, {collate}, {workers} workers"
    return Contender(name + f" by {how}" * bool(how) + ", again" * again, make)


def jax_dataloaders(backend: str, arrays: bool) -> Contender:
    """jax-dataloader over MNIST: the dataset itself, or its examples as two float32 arrays."""

    def make(folder: Path) -> Iterable[Any]:
        try:
            import jax_dataloader
        except ImportError as error:
            raise SkippedError(f"{error}; pip install '.[bench]'") from error
        data = mnist(folder)
        if arrays:
            data = jax_dataloader.ArrayDataset(*NumpyLoader(data, batch_size=128).arrays())
        return jax_dataloader.DataLoader(data, backend, batch_size=128, shuffle=True)

    return Contender(f"jax-dataloader, {backend}, {'arrays' if arrays else 'dataset'}", make)


def grains(data: Data, batch_size: int, workers: int = 0) -> Contender:
    """Grain over the same dataset, read without threads: they would only wait for each other.

    Its workers live as long as an iterator does, so one iterator lasts for all epochs.
    """

    def make(folder: Path) -> Iterable[Any]:
        try:
            import grain
            from absl import flags
        except ImportError as error:
            raise SkippedError(f"{error}; pip install '.[bench]'") from error
        flags.FLAGS.mark_as_parsed()  # its workers want to read them
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        whole = data(folder)
        source = grain.MapDataset.source(whole).seed(0).shuffle()
        if not workers:
            return _GrainEpochs(source, batch_size, options)
        batches = source.repeat().batch(batch_size).to_iter_dataset(options)
        several = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        return _Parts(batches.mp_prefetch(several), len(whole) // batch_size)

    return Contender(f"grain, {workers} workers", make, reads_ahead=workers > 0)


class _GrainEpochs:
    """One shuffled epoch of a Grain dataset after the other."""

    def __init__(self, source: Any, batch_size: int, options: Any) -> None:
        self.source, self.batch_size, self.options = source, batch_size, options
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        source = self.source.seed(self.epoch).shuffle()
        return iter(source.batch(self.batch_size).to_iter_dataset(self.options))


class _Parts:
    """An endless stream of batches, some of it at a time."""

    def __init__(self, stream: Iterable[Any], length: int) -> None:
        self.stream, self.length = iter(stream), length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            yield next(self.stream)


def _mnist() -> Scenario:
    torch_arrays = [torchs(mnist, 128, collate) for collate in list(COLLATES)[:2]]
    over_arrays = jax_dataloaders("jax", arrays=True)
    by_torch = [jax_dataloaders("pytorch", arrays=arrays) for arrays in (False, True)]
    grain = grains(mnist, 128)
    again = torchs(mnist, 128, "numpy_collate", again=True)
    return Scenario(
        name="mnist",
        title="MNIST with FlattenAndCast, batches of 128, shuffled, 0 workers",
        contenders=(ours(mnist, 128), *torch_arrays, again, over_arrays, *by_torch, grain),
        limits=(
            *(Limit("feedax", [contender], 30) for contender in torch_arrays),
            Limit("feedax", [over_arrays], 1.5),
            Limit("feedax", by_torch, 5),
            Limit("feedax", [grain], None),
        ),
    )


def _random() -> Scenario:
    data = turned_and_shifted
    torch_any = [torchs(data, 128, collate, n) for n in (0, WORKERS) for collate in COLLATES]
    again = torchs(data, 128, "numpy_collate", WORKERS, again=True)
    seeded = ours(data, 128, WORKERS, "feedax, seed=0", seed=0)
    return Scenario(
        name="random",
        title="MNIST digits turned and shifted at random by PIL, batches of 128, 2 workers",
        contenders=(ours(data, 128, WORKERS), seeded, *torch_any, again),
        limits=(
            Limit("feedax", torch_any, 1),
            Limit("feedax, seed=0", torch_any, NEVER_SLOWER),
        ),
        random=True,
    )


def _pictures() -> Scenario:
    arrays = [torchs(pictures, 256, collate, WORKERS) for collate in list(COLLATES)[:2]]
    tensors = torchs(pictures_as_tensors, 256, "default_collate", WORKERS)
    again = torchs(pictures_as_tensors, 256, "default_collate", WORKERS, again=True)
    grain = grains(pictures, 256, WORKERS)
    return Scenario(
        name="pictures",
        title="Batches of 256 x 224 x 224 x 3 uint8 from memory, 2 workers",
        contenders=(ours(pictures, 256, WORKERS), *arrays, tensors, again, grain),
        limits=(
            Limit("feedax", arrays, 2),
            Limit("feedax", [tensors], 1),
            Limit("feedax", [grain], None),
        ),
    )


def _jpeg() -> Scenario:
    torch_any = [torchs(jpegs, 64, collate, WORKERS) for collate in COLLATES]
    again = torchs(jpegs, 64, "numpy_collate", WORKERS, again=True)
    grain = grains(jpegs, 64, WORKERS)
    return Scenario(
        name="jpeg",
        title="JPEGs of 320 x 240 from an ImageFolder, batches of 64, 2 workers",
        contenders=(ours(jpegs, 64, WORKERS), *torch_any, again, grain),
        limits=(
            Limit("feedax", torch_any, 1),
            Limit("feedax", [grain], None),
        ),
        prepare=write_jpegs,
    )


def _start() -> Scenario:
    once = {"persistent_workers": False}
    feedax = ours(few_pictures, 16, WORKERS, **once)
    forked = torchs(few_pictures, 16, "numpy_collate", WORKERS, **once)
    again = torchs(few_pictures, 16, "numpy_collate", WORKERS, again=True, **once)
    how = {"multiprocessing_context": "forkserver", **once}
    served = torchs(few_pictures, 16, "numpy_collate", WORKERS, **how)
    return Scenario(
        name="start",
        title="From a second iterator's beginning to its first batch (16 such pictures), 2 workers",
        contenders=(feedax, forked, again, served),
        limits=(
            Limit(
                "feedax",
                [forked],
                NEVER_SLOWER,
                "feedax's workers come from a server without JAX and get the dataset by pickle, "
                "torch's are copies of the process that trains; that is faster, and can deadlock "
                "once JAX runs there",
            ),
            Limit("feedax", [served], NEVER_SLOWER),
        ),
        starts=True,
    )


SCENARIOS = {s.name: s for s in (_mnist(), _random(), _pictures(), _jpeg(), _start())}
