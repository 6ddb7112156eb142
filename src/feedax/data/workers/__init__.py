"""Worker processes: how they start, and how objects and arrays travel between them and the trainer.

The trainer's side is `server` (starts processes, by `forking`) and `channel` (speaks with them); a
worker's side is `worker`. `travel` and `ring` carry objects and arrays between them, and `plain`
finds the long lists that travel once for many epochs. Nothing here imports the rest of
`feedax.data`: what a worker loads, `feedax.data.loading`, is pickled to it.
"""

import sys
from typing import Any

import torch

HAS_OWN_WORKERS = sys.platform.startswith("linux")
"""Whether workers are forked from our server; elsewhere torch starts them in its own way."""


def start_method(multiprocessing_context: Any) -> str:
    """How a loader's workers start; without a context, from our server if there is one."""
    if multiprocessing_context is None and HAS_OWN_WORKERS:
        return "forkserver"
    method: str = (multiprocessing_context or torch.multiprocessing).get_start_method()
    return method


def has_own_workers(multiprocessing_context: Any) -> bool:
    """Whether a loader's workers are forked from our server."""
    return HAS_OWN_WORKERS and start_method(multiprocessing_context) == "forkserver"
