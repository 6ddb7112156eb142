"""`NumpyLoader` beside torch's DataLoader, jax-dataloader and Grain: examples a second.

    python benchmarks/loader.py [--only NAME] [--repetitions 9] [--seconds 2] [--quick]
    python benchmarks/loader.py --memory

Every contender has a process of its own, so that none inherits another's threads, memory or
imports; this script runs there too, as `contend`. Before anything is timed, each reads one epoch,
and all must have seen the same examples, bit for bit (where they are drawn at random, the same
labels). Then they take turns: in each round every contender reads whole epochs for at least so many
seconds, its workers already running, and the order moves on by one from round to round. The
consumer reads every value of every batch.

A rate is the median of the rounds. A ratio is that of two medians, its 95 % interval from 10,000
bootstrap resamples of the rounds: a round's repetitions stay together. A limit is missed when the
interval lies wholly below it. Against several contenders, the best median of them counts. The row
"again" is torch against itself and shows the noise.

``--memory`` measures instead how much memory a long run takes in the end: see `loader_memory`.

Progress goes to standard error, tables in Markdown to standard output.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import loader_memory
import numpy as np
import timing
import torch
from loader_scenarios import SCENARIOS, Limit, Scenario, SkippedError

AGAIN = ", again"

REST = 0.5
"""Seconds that a contender which reads ahead is given to finish what it has begun."""

WORD = 2**64
"""Sums of words wrap around here."""


def main() -> None:
    parser = timing.parser(__doc__, "--repetitions", 9, quick="3 rounds of 0.3 s")
    parser.add_argument("--only", choices=SCENARIOS, help="this scenario and no other")
    parser.add_argument("--seconds", type=float, default=2.0, help="the least for a repetition")
    parser.add_argument("--memory", action="store_true", help="the memory of a long run, instead")
    options = parser.parse_args()
    rounds, seconds = (3, 0.3) if options.quick else (options.rounds, options.seconds)

    print(timing.machine("grain", "jax-dataloader", "pillow"), end="\n\n", flush=True)
    if options.memory:
        print(loader_memory.table(quick=options.quick))
        return
    print(f"{rounds} rounds, repetitions of at least {seconds:g} s, medians\n", flush=True)
    verdicts = []
    for name in [options.only] if options.only else SCENARIOS:
        results = measure(SCENARIOS[name], rounds, seconds)
        print(results.table(), flush=True)
        verdicts += results.verdicts()
    print("| scenario | ratio | measured | 95 % | limit | |\n|---|---|---|---|---|---|")
    print("\n".join(verdicts))


@dataclass
class Results:
    """What one scenario gave.

    Attributes:
        rates: by contender, units a second, one number a round.
        skipped: by contender, why it did not take part.
        examples: how many an epoch has.
    """

    scenario: Scenario
    rates: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    examples: int = 0

    def table(self) -> str:
        """A row for every contender."""
        what = "labels" if self.scenario.random else "examples"
        lines = [
            f"### {self.scenario.title}\n",
            f"All yielded the same {self.examples:,} {what} an epoch, bit for bit.\n",
            f"| {self.scenario.name} | {self.scenario.unit} | least | most | feedax / it | 95 % |",
            "|---|---:|---:|---:|---:|---|",
        ]
        for name in (contender.name for contender in self.scenario.contenders):
            if name in self.skipped:
                lines.append(f"| {name} | skipped: {self.skipped[name]} | | | | |")
                continue
            rates = self.rates[name]
            three = (_number(f(rates)) for f in (np.median, np.min, np.max))
            ratio = _shown(*self.ratio("feedax", (name,))) if name != "feedax" else " | "
            lines.append(f"| {name} | {' | '.join(three)} | {ratio} |")
        return "\n".join([*lines, ""])

    def verdicts(self) -> list[str]:
        """A row for every limit, and the A/A row."""
        rows = []
        for limit in self.scenario.limits:
            against = tuple(name for name in limit.against if name in self.rates)
            start = f"| {self.scenario.name} | {limit.contender} / {self._best(limit)} | "
            if limit.contender not in self.rates or not against:
                reasons = (self.skipped.get(n) for n in (limit.contender, *limit.against))
                rows.append(f"{start}skipped: {next(filter(None, reasons))} | | | |")
                continue
            ratio = self.ratio(limit.contender, against)
            rows.append(f"{start}{_shown(*ratio)} | {_verdict(limit, *ratio)} |")
        for name in self.rates:
            if name.endswith(AGAIN):
                first = name.removesuffix(AGAIN)
                ratio = _shown(*self.ratio(name, (first,)))
                rows.append(f"| {self.scenario.name} | A/A: {first} / itself | {ratio} | noise | |")
        return rows

    def _best(self, limit: Limit) -> str:
        there = [name for name in limit.against if name in self.rates] or limit.against
        if len(there) == 1 or there is limit.against:
            return there[0]
        best = max(there, key=lambda name: np.median(self.rates[name]))
        return f"best of {len(there)}: {best}"

    def ratio(self, contender: str, against: tuple[str, ...]) -> tuple[float, float, float]:
        """The ratio of medians (of the best of those against), and its 95 % interval."""
        ours = self.rates[contender]
        theirs = np.stack([self.rates[name] for name in against])

        def of(rounds: np.ndarray) -> np.ndarray:
            return np.median(ours[rounds], -1) / np.median(theirs[:, rounds], -1).max(0)

        return float(of(np.arange(len(ours)))), *timing.interval(len(ours), of)


def _shown(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f} | {low:.2f} to {high:.2f}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _verdict(limit: Limit, ratio: float, low: float, high: float) -> str:
    if limit.at_least is None:
        return "none | "
    found = timing.judged(low, high, at_least=limit.at_least)
    reason = f": {limit.reason}" if limit.reason and found == "**missed**" else ""
    return f"at least {limit.at_least:g} | {found}{reason}"


def measure(scenario: Scenario, rounds: int, seconds: float) -> Results:
    """Let a scenario's contenders take turns."""
    results = Results(scenario)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        scenario.prepare(Path(folder))
        running, fingerprints = {}, {}
        for contender in scenario.contenders:
            _progress(f"{scenario.name}: {contender.name} starts")
            process = stack.enter_context(_started(scenario, contender.name, folder))
            first = _answer(process, contender.name)
            if "skipped" in first:
                results.skipped[contender.name] = first["skipped"]
                continue
            running[contender.name] = process
            fingerprints[contender.name] = first["examples"], first["fingerprint"]
        if len(set(fingerprints.values())) != 1:
            raise SystemExit(f"{scenario.name}: not everyone yields the same: {fingerprints}")
        [(results.examples, _)] = set(fingerprints.values())
        sides = {name: partial(_rate, name, running[name], seconds) for name in running}
        rates = timing.in_turn(sides, rounds)
    results.rates = {name: np.array(values) for name, values in rates.items()}
    return results


def _rate(name: str, process: subprocess.Popen[str], seconds: float) -> float:
    """Units a second of one repetition."""
    print(seconds, file=process.stdin, flush=True)
    said = _answer(process, name)
    rate = said["examples"] / said["seconds"]
    _progress(f"{name} {_number(rate)}")
    return rate


@contextlib.contextmanager
def _started(scenario: Scenario, contender: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    """The contender's process; it ends when its input does."""
    command = [sys.executable, __file__, "--contender", scenario.name, contender, folder]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def _answer(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended with exit code {process.wait()}; its error stands above")
    return json.loads(line)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# In a contender's process.


def contend(scenario_name: str, name: str, folder: str) -> None:
    """Make a loader, read an epoch that is not timed (workers start, caches fill), and answer.

    The first line of JSON says how many examples the epoch had, and a fingerprint of them. Each
    line of the input, a number of seconds, is answered with a repetition of at least that length.
    """
    # Whatever a library prints goes to standard error; the answers have standard output alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    scenario = SCENARIOS[scenario_name]
    [contender] = (c for c in scenario.contenders if c.name == name)
    try:
        loader = contender.make(Path(folder))
    except SkippedError as reason:
        answer(skipped=str(reason))
        return
    first = look(loader, scenario)
    answer(**first)
    for line in sys.stdin:
        if scenario.starts:
            answer(**time_starts(loader, float(line)))
            continue
        if contender.reads_ahead:
            read_epochs(loader, 0)
        result = read_epochs(loader, float(line))
        expected = result["epochs"] * first["checksum"] % WORD
        if result["checksum"] != expected and not scenario.random:
            raise RuntimeError(f"{name} yielded other examples than in its first epoch")
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
    if sys.argv[1:2] == ["--contender"]:
        contend(*sys.argv[2:])
    else:
        main()
