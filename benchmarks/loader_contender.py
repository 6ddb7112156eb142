"""One contender of `loader.py`, in a process of its own.

    python benchmarks/loader_contender.py SCENARIO CONTENDER FOLDER

It makes its loader, reads an epoch that is not timed (workers start, caches fill), and writes a
line of JSON: how many examples it saw, and a fingerprint of them. Then it answers every line of
its input, a number of seconds, with a repetition of at least that length.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_scenarios import SCENARIOS, Scenario, SkippedError

WORD = 2**64
"""Sums of words wrap around here."""

REST = 0.5
"""Seconds that a contender which reads ahead is given to finish what it has begun."""


def main() -> None:
    # Whatever a library prints goes to standard error; the answers have standard output alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    scenario = SCENARIOS[sys.argv[1]]
    [contender] = (c for c in scenario.contenders if c.name == sys.argv[2])
    try:
        loader = contender.make(Path(sys.argv[3]))
    except SkippedError as reason:
        answer(skipped=str(reason))
        return
    first = look(loader, scenario)
    answer(examples=first["examples"], fingerprint=first["fingerprint"])
    for line in sys.stdin:
        if scenario.starts:
            answer(**time_starts(loader, float(line)))
            continue
        if contender.reads_ahead:
            read_epochs(loader, 0)
        result = read_epochs(loader, float(line))
        expected = result.pop("epochs") * first["checksum"] % WORD
        if result.pop("checksum") != expected and not scenario.random:
            raise RuntimeError(f"{contender.name} yielded other examples than in its first epoch")
        if contender.reads_ahead:
            time.sleep(REST)
        answer(**result)


def read_epochs(loader: Iterable[Any], seconds: float) -> dict[str, Any]:
    """Read whole epochs for at least so long. An epoch ends with nothing left in the workers."""
    examples = epochs = checksum = 0
    started = time.perf_counter()
    while True:
        for batch in loader:
            checksum += read(batch)
            examples += len(batch[1])
        epochs += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            counted = {"examples": examples, "epochs": epochs, "checksum": checksum % WORD}
            return {**counted, "seconds": elapsed}


def time_starts(loader: Iterable[Any], seconds: float) -> dict[str, Any]:
    """Make new iterators for at least so long; time each one up to its first batch, not its end."""
    counted = starts = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not starts:
        started = time.perf_counter()
        epoch = iter(loader)
        read(next(epoch))
        counted += time.perf_counter() - started
        starts += 1
        del epoch  # its workers end
    return {"examples": starts, "seconds": counted}


def look(loader: Iterable[Any], scenario: Scenario) -> dict[str, Any]:
    """An epoch's examples, their fingerprint (the same in any order), and their checksum."""
    examples = checksum = fingerprint = 0
    for batch in loader:
        checksum += read(batch)
        x, y = (np.ascontiguousarray(_array(leaf)) for leaf in batch)
        for i in range(len(y)):
            # A field of its own each: a picture under another's label must not go unnoticed.
            seen = zlib.crc32(y[i].tobytes())
            fingerprint += seen if scenario.random else zlib.crc32(x[i], seen) << 32 | seen
        examples += len(y)
    fingerprint %= WORD
    return {"examples": examples, "checksum": checksum % WORD, "fingerprint": fingerprint}


def read(batch: Any) -> int:
    """Touch every value: the sum of a batch's bytes, taken as words of eight where they fit."""
    return sum(map(_sum_of_words, batch))


def _sum_of_words(leaf: Any) -> int:
    values = _array(leaf)
    fits = values[:1].nbytes % 8 == 0  # no word may lie across two examples
    words = values.reshape(-1).view(np.uint64 if fits else np.uint8)
    return int(np.add.reduce(words, dtype=np.uint64))


def _array(leaf: Any) -> np.ndarray:
    """The leaf's own memory."""
    return leaf.numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


if __name__ == "__main__":
    main()
