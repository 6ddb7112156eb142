"""PyTorch's side: from a dataset to NumPy batches. Nothing here imports JAX.

Worker processes import this package, and a worker with JAX in it would start JAX's threads or
take a share of the GPU's memory.
"""

from feedax.data.array_dataset import ArrayDataset
from feedax.data.collate import numpy_collate
from feedax.data.loader import NumpyLoader
from feedax.data.plan import Plan
from feedax.data.transforms import FlattenAndCast

__all__ = ["ArrayDataset", "FlattenAndCast", "NumpyLoader", "Plan", "numpy_collate"]
