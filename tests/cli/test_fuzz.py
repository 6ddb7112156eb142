"""Mutated files of a run's folder, through the commands: a sentence or the right thing.

The long form is marked slow: 3,000 mutations of each kind; it prints its counts and its seed.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from feedax.cli import main
from feedax.errors import FeedaxError
from feedax.report import figures
from feedax.report.run_folder import RunFolder
from feedax.train.waiting import Waiting

SEED = 20261128
TINY = "--hidden 8 --batch-size 16 --loss cross_entropy --epochs 2 --dataset npz:../data/tiny.npz"
ODD = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "x" * 10_000, "\ud800", "\x1b[2J", "../../../data/x", "/etc/passwd",
    [], {}, [[]], [0], [30000, 30000, 4], ["--help"], {"a": 1}, "npz:/etc/passwd", "os:getcwd",
)  # fmt: skip
RAW = (
    b"", b"null", b"1e999", b"NaN", b"-1", b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe",
    b"\xef\xbb\xbf", b'"\\ud800"', b"\x00", b'"epoch": 1, "epoch": 2', b"18446744073709551616",
    b"\n", b",", b"]}",
)  # fmt: skip


class Reached(Exception):
    """Training would begin."""


def mutated(content, draw):
    """The same bytes, but for one to three places."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        end = min(len(content), place + draw.choice((1, 4, 30, 300)))
        match draw.randrange(6):
            case 0 if place < len(content):
                content[place] ^= 1 << draw.randrange(8)
            case 1:
                content[place:end] = draw.choice(RAW)
            case 2:
                content[place:end] = draw.randbytes(end - place)
            case 3:
                content[place:place] = content[place:end]
            case 4:
                del content[place:end]
            case 5 if draw.random() < 0.2:
                del content[place:]
    return bytes(content)


def changed(value, draw):
    """The same JSON value, but for an entry of it, or one less or more."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(ODD)
    value = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw.choice(list(keys))
    match draw.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.append(draw.choice(ODD))
        case 2 if isinstance(value, dict):
            value[draw.choice([*keys, "more", "\ud800"])] = draw.choice(ODD)
        case _:
            value[key] = changed(value[key], draw)
    return value


def json_mutated(content, draw):
    if draw.random() < 0.4:
        return mutated(content, draw)
    text = json.dumps(changed(json.loads(content), draw))
    return (text if draw.random() < 0.9 else text.replace("{", '{"run": 1, ', 1)).encode()


def lines_mutated(content, draw):
    if draw.random() < 0.4:
        return mutated(content, draw)
    lines = [json.loads(line) for line in content.splitlines()]
    i = draw.randrange(len(lines))
    lines[i] = changed(lines[i], draw)
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def header_mutated(content, draw, is_signed=False):
    """A safetensors file: its header is changed; that of a checkpoint is signed again."""
    if draw.random() < (0.2 if is_signed else 0.4):
        return mutated(content, draw)
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:end]), content[end:]
    metadata = header.pop("__metadata__")
    if not is_signed:
        text = json.dumps(changed({"__metadata__": metadata, **header}, draw)).encode()
        return len(text).to_bytes(8, "little") + text + data
    if draw.random() < 0.75:
        name = draw.choice(("about", "about", "dtypes"))
        inner = changed(json.loads(metadata[name]), draw)
        for _ in range(draw.randrange(2)):
            inner = changed(inner, draw)
        metadata[name] = json.dumps(inner)
    else:
        header = changed(header, draw)
        header = header if isinstance(header, dict) else {}
    begin = {"format": metadata["format"], "size": "0" * 16, "sha256": "0" * 64}
    text = json.dumps({"__metadata__": metadata | begin, **header}, separators=(",", ":")).encode()
    size = 8 + len(text) + len(data)
    text = text.replace(b'"size":"' + b"0" * 16, b'"size":"%016d' % size, 1)
    content = len(text).to_bytes(8, "little") + text + data
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1)


def signed_mutated(content, draw):
    return header_mutated(content, draw, is_signed=True)


NAMED = "--dataset npz:../data/tiny.npz"
RUN_COMMANDS = (
    f"evaluate run {NAMED}",
    "predict run ../data/seven.png",
    f"train --resume run {NAMED}",
    f"train {TINY} --initial-params run --out new",
)
SWEEP = (f"sweep --resume swept {NAMED}",)
KINDS = {
    "config": (json_mutated, [("run/config.json", RUN_COMMANDS), ("swept/config.json", SWEEP)]),
    "metrics": (lines_mutated, [("run/metrics.jsonl", ()), ("swept/networks.jsonl", SWEEP)]),
    "params": (header_mutated, [("run/params.safetensors", RUN_COMMANDS)]),
    "checkpoints": (
        signed_mutated,
        [
            ("run/checkpoints/step-000000006.safetensors", RUN_COMMANDS[2:3]),
            ("swept/networks/learning_rate=0.01,seed=0.safetensors", SWEEP),
        ],
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    (folder / "mail").mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 4, 4), np.uint8), np.arange(40) % 3
    parts = {"x_test": images[:9], "y_test": labels[:9]}
    np.savez(folder / "data" / "tiny.npz", x_train=images, y_train=labels, **parts)
    Image.fromarray(images[0]).save(folder / "data" / "seven.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "mail")
        assert main(["train", *TINY.split(), "--out", "run"]) == 0
        words = "--learning-rate 0.01 0.02 --seeds 1 --out swept"
        assert main(["sweep", *TINY.split(), *words.split()]) == 0
    (folder / "mail").rename(folder / "honest")
    return folder


@pytest.fixture
def quick(monkeypatch, kind):
    """The parser is asked once for the same words, nothing is trained, and rows alone are drawn."""
    parsed, parse = {}, tyro.cli

    def remembered(kind, *, args, **options):
        key = (kind, tuple(args), repr(options["default"]))
        if key not in parsed:
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                try:
                    parsed[key] = parse(kind, args=args, **options), None, ""
                except BaseException as error:
                    parsed[key] = None, error, said.getvalue()
        found, error, said = parsed[key]
        if error is not None:
            print(said, file=sys.stderr)
            raise error
        return found

    def stop(self, state, piece):
        raise Reached

    monkeypatch.setattr(tyro, "cli", remembered)
    monkeypatch.setattr(Waiting, "run", stop)
    if kind != "metrics":
        monkeypatch.setattr(figures, "curves_png", lambda rows, title: b"")
        monkeypatch.setattr(figures, "sweep_curves_png", lambda rows, title: b"")


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def outcome(words):
    """The exit code of a command and what it said; it neither hangs nor shows a traceback."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        signal.alarm(60)
        try:
            if words is None:  # no command reads these
                code = 0
                try:
                    RunFolder.open("run").rows()
                    RunFolder.open("run").save_curves()
                except FeedaxError as error:
                    code = 1
                    print(f"feedax: {error}")
            else:
                code = main(shlex.split(words))
        finally:
            signal.alarm(0)
    return code, said.getvalue()


def fuzz(made, monkeypatch, kind, count, seed):
    mutate, places = KINDS[kind]
    monkeypatch.chdir(made)
    outside = files(Path("data")), files(Path("honest"))
    honest = {
        (place, words): outcome_of(place, None, words)
        for place, commands in places
        for words in commands or (None,)
    }
    assert all(code == 0 or "Reached" in said for code, said in honest.values()), honest
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: Counter[str] = Counter()
    opened, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for number in range(count):
        draw = random.Random(f"{seed} {kind} {number}")
        place, commands = draw.choice(places)
        content = mutate(Path("honest", place).read_bytes(), draw)
        words = draw.choice(commands or (None,))
        code, said = outcome_of(place, content, words)
        where = f"seed {seed}, {kind} {number}: {place}, {words}: {code}, {said[:1000]}"
        if code not in (0, 1, 2) or "Traceback" in said:
            raise AssertionError(where)
        is_named = "FEEDAX_TRACEBACK" not in said or "Reached" in said
        assert is_named, where
        assert all(len(line) < 2000 for line in said.splitlines()), where
        assert not re.search(r"[\x1b\ud800-\udfff]", said), where
        assert (files(Path("data")), files(Path("honest"))) == outside, where
        assert sorted(os.listdir()) == ["data", "honest", "mail"], where
        counts["went on" if "Reached" in said else f"exit code {code}"] += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{kind}: {count} mutations, seed {seed}: {dict(counts)}; {before} to {after} KiB")
    assert after < 2 * before, "the memory"
    assert len(os.listdir("/proc/self/fd")) <= opened + 2
    assert len(os.listdir("/proc/self/task")) <= threads + 2


def outcome_of(place, content, words):
    shutil.rmtree("mail", ignore_errors=True)
    shutil.copytree("honest", "mail")
    if content is not None:
        Path("mail", place).write_bytes(content)
    os.chdir("mail")
    try:
        return outcome(words)
    finally:
        os.chdir("..")


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_end_in_a_sentence(made, monkeypatch, quick, kind):
    fuzz(made, monkeypatch, kind, 8, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_files_end_in_a_sentence(made, monkeypatch, quick, kind):
    fuzz(made, monkeypatch, kind, 3000, SEED + 1)
