"""A loader's arguments are its attributes: assigned, read by other libraries, and copied."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import slow
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    get_worker_info,
)

from feedax.data import ArrayDataset, NumpyLoader, numpy_collate
from feedax.errors import PlanError, PositionError


class Squares(Dataset):
    """Loaded one by one; its pickle goes by reference."""

    def __init__(self, count=6):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index * index


class Share(IterableDataset):
    """Shares itself out."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(info.id, 6, info.num_workers) if info else range(6))


class Summing(NumpyLoader):
    """A subclass with the same arguments."""


def values(loader):
    return [np.ravel(batch).tolist() for batch in loader]


def summed(examples):
    return np.array(sum(examples))


# Assigned attributes


def test_what_torch_lets_one_assign_is_honoured():
    for cls in (DataLoader, NumpyLoader):
        loader = cls(Squares(), batch_size=2)
        assert [len(batch) for batch in loader] == [2, 2, 2]
        loader.collate_fn = summed
        assert [int(batch) for batch in loader] == [1, 13, 41]
    loader = NumpyLoader(TensorDataset(torch.arange(4)), batch_size=2)
    assert loader.plan().name == "resident"
    loader.collate_fn = lambda examples: np.ravel(examples)[::-1]
    assert loader.plan().reason == "a collate_fn of your own wants to see the examples"
    assert not loader.batches_are_fresh
    assert values(loader) == [[1, 0], [3, 2]]
    loader.collate_fn = numpy_collate
    assert loader.plan().name == "resident"


@pytest.mark.parametrize("persistent", [slow(False), True])
def test_workers_may_be_assigned_and_are_ours(persistent):
    """A dataset of a local class and its lambda travel to our workers only."""

    class Local(Squares):
        def __init__(self):
            super().__init__(4)
            self.function = lambda index: (index, get_worker_info().num_workers)

        def __getitem__(self, index):
            return self.function(index)

    loader = NumpyLoader(
        Local(), 2, num_workers=1 if persistent else 0, persistent_workers=persistent
    )
    if persistent:
        assert [batch[1].tolist() for batch in loader] == [[1, 1], [1, 1]]
    loader.num_workers = 2
    assert loader.prefetch_factor == 2
    assert [batch[1].tolist() for batch in loader] == [[2, 2], [2, 2]]
    loader.worker_init_fn = lambda worker: setattr(
        get_worker_info().dataset, "function", lambda index: (index, 10 + worker)
    )
    assert [batch[1].tolist() for batch in loader] == [[10, 10], [11, 11]]
    loader.num_workers = 0
    assert loader.prefetch_factor is None


def test_our_own_may_be_assigned_too_and_what_does_not_go_together_is_refused():
    loader = NumpyLoader(TensorDataset(torch.arange(4)), batch_size=2, shuffle=True)
    loader.plan = "streamed"
    assert (loader.plan, loader.plan().reason) == ("streamed", "it was asked for")
    loader.plan = "auto"
    loader.memory_budget = 3
    assert loader.plan().name == "vectorised"
    loader.seed = 3
    assert values(loader) == values(NumpyLoader(loader.dataset, 2, shuffle=True, seed=3))
    streamed = NumpyLoader(Squares(4), batch_size=2)
    streamed.cache = True
    assert (values(streamed), streamed.plan().name) == ([[0, 1], [4, 9]], "resident")
    for change, why in [
        ({"generator": torch.Generator()}, "NumpyLoader: either seed or generator must decide the "
         "order, and both are given; leave one of them out"),
        ({"plan": "fast"}, "NumpyLoader: plan must be 'auto' or one of 'resident', 'vectorised', "
         "'streamed', and it is 'fast'; leave it out for the fastest one"),
        ({"num_workers": -1}, "NumpyLoader: num_workers must be a number from 0 on, and it is "
         "-1; leave it out"),
    ]:  # fmt: skip
        before = dict(vars(loader))
        with pytest.raises(PlanError) as error:
            setattr(loader, *change.popitem())
        assert str(error.value) == why
        assert vars(loader) == before
    with pytest.raises(PlanError) as error:
        streamed.collate_fn = summed
    assert str(error.value) == (
        "NumpyLoader: cache=True keeps examples by their indices, and a collate_fn of your own "
        "hides them; leave it out"
    )
    assert values(streamed) == [[0, 1], [4, 9]]
    with pytest.warns(UserWarning, match="pin_memory pins the memory of torch's tensors"):
        loader.pin_memory = True


# Made again


def arguments_of(loader):
    """As Lightning and Fabric do: the public attributes that are named like arguments."""
    names = {*NumpyLoader.__init__.__annotations__} - {"return"}
    found = {name: value for name, value in vars(loader).items() if name in names}
    return found | {"multiprocessing_context": loader.multiprocessing_context}


@pytest.mark.parametrize("cls", [NumpyLoader, Summing])
@pytest.mark.parametrize("of", ["vars", "getattr"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 2, "shuffle": True, "seed": 5, "cache": True, "memory_budget": 7},
        {"batch_size": 3, "plan": "streamed", "drop_last": True},
        {"batch_size": None, "plan": "streamed"},
        {"sampler": [3, 1, 2], "plan": "resident", "seed": 1},
        {"batch_sampler": [[1, 2], [0]], "num_workers": 1},
    ],
    ids=lambda arguments: "-".join(arguments),
)  # fmt: skip
def test_a_loader_made_again_from_its_attributes_is_equal(arguments, of, cls):
    data = Squares(4) if "cache" in arguments else TensorDataset(torch.arange(4) ** 2)
    loader = cls(data, **arguments)
    found = arguments_of(loader)
    if of == "getattr":
        found = {name: getattr(loader, name) for name in found}
    if loader.batch_sampler is not None:
        for name in ("batch_size", "drop_last", "sampler"):
            found.pop(name)
    again = cls(**found)
    assert type(again) is cls
    assert str(again.plan()) == str(loader.plan())
    for _ in range(2):
        assert values(again) == values(loader)
    own = ("seed", "cache", "plan", "memory_budget", "collate_fn", "num_workers")
    assert [getattr(again, name) for name in own] == [getattr(loader, name) for name in own]


def test_lightning_makes_a_loader_again():
    from lightning.fabric.utilities.data import _replace_dunder_methods, _update_dataloader

    data = [float(i) for i in range(12)]
    with _replace_dunder_methods(DataLoader, "dataset"):  # as it does around a user's hook
        wrapped = NumpyLoader(data, 3, seed=5, plan="streamed")
        wrapped.collate_fn = summed
    for loader in (NumpyLoader(data, 3, seed=5, plan="streamed", collate_fn=summed), wrapped):
        again = _update_dataloader(loader, DistributedSampler(data, 2, 0))
        expected = NumpyLoader(data, 3, sampler=DistributedSampler(data, 2, 0), seed=5)
        assert (again.seed, again.plan, type(again)) == (5, "streamed", NumpyLoader)
        assert [float(batch) for batch in again] == [float(batch.sum()) for batch in expected]
        twice = _update_dataloader(again, DistributedSampler(data, 2, 0))
        assert arguments_of(twice).keys() == arguments_of(again).keys()
        assert (twice.seed, twice.plan) == (5, "streamed")


# Lightning's own use of torch.
@pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers",
)
def test_lightning_saves_a_loader_that_cannot_tell_its_position(tmp_path):
    import lightning.pytorch as pl

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, _):
            return self.layer(torch.as_tensor(batch, dtype=torch.float32)[:, None]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1)],
    )  # fmt: skip
    trainer.fit(Model(), NumpyLoader([*range(12)], batch_size=2, in_order=False))
    assert trainer.global_step == 2
    assert list(tmp_path.glob("*.ckpt"))


# torch forks this process, which has JAX in it.
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
def test_accelerate_makes_a_torch_loader_whose_workers_start_as_torchs_do():
    from accelerate import Accelerator

    loader = NumpyLoader(Squares(4), batch_size=2, num_workers=1)
    prepared = Accelerator(cpu=True).prepare(loader)
    assert prepared.multiprocessing_context is None
    assert [np.asarray(batch).tolist() for batch in prepared] == [[0, 1], [4, 9]]


# Copies

DATASETS = {
    "tensors": lambda: TensorDataset(torch.arange(6)),
    "array": lambda: np.arange(6),
    "arrays": lambda: ArrayDataset(np.arange(6), np.arange(6)),
    "subset": lambda: Subset(TensorDataset(torch.arange(8)), [*range(6)]),
    "list": lambda: [*range(6)],
    "any Python": Squares,
    "stream": Share,
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda loader: pickle.loads(pickle.dumps(loader)),
}


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("name", DATASETS)
def test_a_copy_stands_where_the_next_epoch_begins(name, make):
    arguments = {"batch_size": 2, "seed": 4, "shuffle": None if name == "stream" else True}
    loader = NumpyLoader(DATASETS[name](), **arguments)
    alone = NumpyLoader(DATASETS[name](), **arguments)
    epochs = [values(alone) for _ in range(3)]
    assert [values(COPIES[make](loader)) for _ in range(2)] == [epochs[0]] * 2
    within = iter(loader)
    first = values([next(within)])
    copied = COPIES[make](loader)
    assert copied.state_dict()["epoch"] == 1
    assert values(copied) == epochs[1]
    assert first + values(within) == epochs[0]
    saved = loader.state_dict()
    assert values(COPIES[make](loader)) == epochs[1]
    assert loader.state_dict() == saved
    resumed = NumpyLoader(DATASETS[name](), **arguments)
    resumed.load_state_dict(saved)
    assert COPIES[make](resumed).state_dict() == saved
    assert [values(loader), values(loader)] == epochs[1:]


@pytest.mark.parametrize("make", COPIES)
def test_a_loader_with_workers_or_a_cache_may_be_copied(make):
    loader = NumpyLoader(
        Squares(4), batch_size=2, num_workers=1, persistent_workers=True, cache=True, shuffle=True,
        seed=1,
    )  # fmt: skip
    epoch = iter(loader)
    next(epoch)
    copied = COPIES[make](loader)
    list(epoch)
    assert loader.plan().name == "resident"
    again = COPIES[make](loader)
    assert again.plan().name == "resident"  # what is kept goes along
    assert sorted(number for batch in values(copied) for number in batch) == [0, 1, 4, 9]
    assert values(again) == values(loader)
    assert copied.stats().batches == 2


def test_a_deepcopy_takes_a_local_class_and_a_copy_its_own_generator():
    class Local(Squares):
        pass

    generator = torch.Generator().manual_seed(1)
    loader = NumpyLoader(Local(), 2, shuffle=True, generator=generator)
    list(loader)
    copied = copy.deepcopy(loader)
    assert copied.generator is copied.sampler.generator is not generator
    assert copied.state_dict() == loader.state_dict()
    assert [values(copied), values(copied)] == [values(loader), values(loader)]


# Positions that cannot be told


class Failing(RandomSampler):
    """Its state cannot be asked for."""

    def state_dict(self):
        raise RuntimeError("not now")

    def load_state_dict(self, state):
        raise AssertionError


class FailingStream(Share):
    state_dict, load_state_dict = Failing.state_dict, Failing.load_state_dict


@pytest.mark.parametrize(
    ("loader", "name"),
    [(lambda: NumpyLoader(Squares(), 2, sampler=Failing(Squares())), "Failing"),
     (lambda: NumpyLoader(FailingStream(), 2), "FailingStream")],
    ids=["sampler", "stream"],
)  # fmt: skip
def test_a_state_that_fails_is_told_and_not_raised(loader, name):
    loader = loader()
    epoch = iter(loader)
    next(epoch)
    why = (
        f"NumpyLoader: a position has the state of its {name}, and state_dict failed there "
        "(RuntimeError: not now); mend it, or leave it out"
    )
    assert loader.state_dict() == {"version": 1, "cannot_tell": why}
    assert len(list(epoch)) == 2
    with pytest.raises(PositionError) as error:
        loader.load_state_dict(loader.state_dict() | {"cannot_tell": why})
    assert str(error.value) == (
        "NumpyLoader: load_state_dict must get a position, and the loader that saved this one "
        f"could not tell its own ({why}); begin the epoch anew"
    )


class Forwarding:
    """A wrapper that changes what another yields, and finds all else there."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class Stateful(RandomSampler):
    def state_dict(self):
        return {"is": "inner"}

    def load_state_dict(self, state):
        raise AssertionError


class Reversed(Forwarding):
    def __iter__(self):
        return iter(list(self.inner)[::-1])

    def __len__(self):
        return len(self.inner)


def test_a_sampler_within_does_not_tell_where_its_wrapper_stands():
    inner = Stateful(Squares(), generator=torch.Generator().manual_seed(3))
    loader = NumpyLoader(Squares(), 2, sampler=Reversed(inner), seed=1)
    epoch = iter(loader)
    first, saved = next(epoch).tolist(), loader.state_dict()
    assert "sampler" not in saved
    inner = Stateful(Squares(), generator=torch.Generator().manual_seed(3))
    again = NumpyLoader(Squares(), 2, sampler=Reversed(inner), seed=1)
    again.load_state_dict(saved)
    assert [first, *values(again)] == [first, *(batch.tolist() for batch in epoch)]
