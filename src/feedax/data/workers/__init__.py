"""How worker processes are started, and how the trainer speaks with them.

    trainer (has JAX)                      server (has imported torch, never JAX)
    WorkerContext.Process --- FORK ------> main -> _serve -> os.fork -----------+
         |                |                  |                                  |
         |                +-- HOLD, lists -> _hold, unpickles them -> os.fork --+
         |                                                                      v
    Channel <=== a socket and slots of shared memory ===> WorkerEnd in run_worker, a worker:
    TrainerEnd (torch's queue and event)                  torch's loop over feedax.data.loading

`server` is all that starts a process, on either side; `channel` is both ends of what ties a worker
to the trainer; `slots` is the shared memory for large arrays, and `pickling` all other objects.
Nothing here imports the rest of `feedax.data`: what a worker loads is pickled to it.
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
