"""Datasets from factories in modules of the user's own."""

import itertools
import sys
from functools import partial

import helpers
import pytest

from feedax import datasets
from feedax.errors import DatasetError, reason

message = partial(helpers.message, DatasetError)


COUNTER = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder, and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(source):
        name = f"factories_{next(COUNTER)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


WORKING = """
from torch.utils.data import IterableDataset

PAIRS = [(0, 1), (2, 3)]

def both(train): return PAIRS if train else PAIRS[:1]
def training(train=True): return PAIRS if train else None
def anything(**options): return [options]
def old(): return PAIRS
def positional(train=7, /): return [train]

class Stream(IterableDataset):
    def __init__(self, train=True): self.train = train
    def __iter__(self): return iter(PAIRS)

class Group:
    make = staticmethod(both)
"""


def test_factories(module):
    name = module(WORKING)

    def parts(factory):
        return [datasets.load(f"{name}:{factory}", train=train) for train in (True, False)]

    pairs = [(0, 1), (2, 3)]
    assert parts("both") == [pairs, pairs[:1]]
    assert parts("training") == [pairs, None]
    assert parts("anything") == [[{"train": True}], [{"train": False}]]
    assert parts("old") == [pairs, None]
    assert parts("positional") == [[7], None]
    assert parts("Group.make") == [pairs, pairs[:1]]
    assert [stream.train for stream in parts("Stream")] == [True, False]


FAILING = """
import torch.utils.data
from feedax.errors import DatasetError

def raises(): raise ValueError("no\\n luck")
def typed(): raise DatasetError("said already")
def nothing(): return None
def number(): return 3
def pair(): return [1], [2]
def loader(): return torch.utils.data.DataLoader([1, 2])
def a_class(): return torch.utils.data.Dataset
def empty(): return []
THREE = 3
"""
NO_DATASET = "the factory must return a PyTorch dataset of single examples, with __getitem__ or "


@pytest.mark.parametrize(
    ("factory", "rest"),
    [
        (
            "raises",
            "the factory must return a dataset, and it raised ValueError: no luck; call it in "
            "Python to see where",
        ),
        ("nothing", f"{NO_DATASET}__iter__, and it returned None; return the dataset itself"),
        *(
            (
                factory,
                f"{NO_DATASET}__iter__, and it returned an object of type {kind}; return the "
                "dataset itself",
            )
            for factory, kind in [
                ("number", "int"),
                ("pair", "tuple"),
                ("loader", "DataLoader"),
                ("a_class", "type"),
            ]
        ),
        (
            "empty",
            "the factory must return a dataset with at least one example, and list is empty; "
            "check where it reads from",
        ),
        (
            "THREE",
            "the name after the colon must be a function or a class, and it is an object of type "
            "int; name a callable that returns the dataset",
        ),
        (
            "numbr",
            "the name after the colon must be in MODULE, and it has no 'numbr'; did you mean "
            "'number'?",
        ),
        (
            "xyz.make",
            "the name after the colon must be in MODULE, and it has no 'xyz'; add it to the module",
        ),
    ],
)
def test_factories_that_fail(module, factory, rest):
    name = module(FAILING)
    assert message(datasets.load, f"{name}:{factory}") == (
        f"{name}:{factory}: {rest.replace('MODULE', name)}"
    )


def test_the_cause_is_kept_and_a_feedax_error_is_passed_on(module):
    name = module(FAILING)
    with pytest.raises(DatasetError) as caught:
        datasets.from_factory(f"{name}:raises")
    assert isinstance(caught.value.__cause__, ValueError)
    assert message(datasets.from_factory, f"{name}:typed") == "said already"


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [
        ("no_such_module", "no_such_module", "install it or run feedax in the folder that has it"),
        (
            "torch.no_such_part",
            "torch.no_such_part",
            "install it or run feedax in the folder that has it",
        ),
        ("imagefoldr", "imagefoldr", "did you mean 'imagefolder'?"),
        ("emnits", "emnits", "did you mean 'emnist'?"),
        ("own_data.py", "own_data", "leave .py out: own_data:make"),
    ],
)
def test_a_module_that_is_missing(module, name, missing, remedy):
    assert message(datasets.load, f"{name}:make") == (
        f"{name}:make: the module before the colon must be importable, and there is no "
        f"{missing!r}; {remedy}"
    )


@pytest.mark.parametrize(
    ("source", "raised"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported(module, source, raised):
    name = module(source)
    assert message(datasets.load, f"{name}:make") == (
        f"{name}:make: the module before the colon must be importable, and importing {name} "
        f"raised {raised}; repair the module"
    )


def test_a_reason_without_words():
    assert reason(ValueError()) == "ValueError"
