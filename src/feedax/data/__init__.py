"""PyTorch's side: from a dataset to NumPy batches. Nothing here imports JAX.

Worker processes import this package, and a worker with JAX in it would start JAX's threads or
take a share of the GPU's memory.
"""

from feedax.data.array_dataset import ArrayDataset, FlattenAndCast
from feedax.data.array_form import register_arrays
from feedax.data.collate import numpy_collate
from feedax.data.iterators import LoaderStats
from feedax.data.loader import NumpyLoader
from feedax.data.plan import Plan

__all__ = [
    "ArrayDataset",
    "FlattenAndCast",
    "LoaderStats",
    "NumpyLoader",
    "Plan",
    "numpy_collate",
    "register_arrays",
]
