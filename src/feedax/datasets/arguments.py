"""What the arguments of the dataset functions have in common."""

import os
from collections.abc import Callable
from typing import Any

from feedax.data.array_dataset import FlattenAndCast

AnyPath = str | os.PathLike[str]

Transform = Callable[[Any], Any]

FLATTEN = FlattenAndCast()
"""The default transform. It has no state, so all datasets share it."""
