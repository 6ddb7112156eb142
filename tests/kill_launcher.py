"""Starts trainers that need not import anything: they are forked from a process that has.

A line of JSON comes in for each request, and a line of JSON goes out::

    {"words": [...], "out": "FILE", "err": "FILE", "jax": {...}}   ->  process number
    {"wait": process number}                                       ->  exit code, as subprocess's

This process has imported JAX and used nothing of it, so it has no threads of JAX's to lose.
"""

import json
import os
import signal
import sys


def serve() -> None:
    import importlib

    for name in (
        "numpy",
        "jax",
        "torch",
        "torchvision",
        "optax",
        "matplotlib.backends.backend_agg",
    ):
        importlib.import_module(name)
    cli = ("examples", "network", "progress", "resume", "train")
    for name in (*(f"feedax.cli.{part}" for part in cli), "feedax.report.figures", "kill_jobs"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            _become_trainer(**request)
        print(answer, flush=True)


def _become_trainer(words: list[str], out: str, err: str, jax: dict[str, object]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for file, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(file, flags if descriptor else os.O_RDONLY, 0o600), descriptor)
    import random
    from importlib import import_module

    import numpy
    import torch

    for name, value in jax.items():
        import_module("jax").config.update(name, value)
    # Trainers that are not forked do not share their random states either.
    random.seed()
    numpy.random.seed()
    torch.seed()
    code = 1
    try:
        code = import_module("kill_jobs").main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # As an interpreter ends: threads are joined, what is registered runs.
        import atexit
        import threading

        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
