"""The examples in docstrings run, and say what they are said to say."""

import doctest
import importlib
import pkgutil

import pytest
from helpers import slow

import feedax

SLOW = ("augment.geometry", "augment.mixing", "augment.pixels", "train.adapters", "train.mlp")
"""Modules whose examples compile much."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(feedax.__path__, "feedax.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize(
    "name", [slow(name) if name.removeprefix("feedax.") in SLOW else name for name in MODULES]
)
def test_the_examples_of_a_module(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = map(importlib.import_module, MODULES)
    examples = [test for module in modules for test in finder.find(module) if test.examples]
    assert len(examples) > 20
