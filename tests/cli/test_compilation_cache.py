"""The command line's compilation cache: what it saves, and what it survives."""

import collections
import itertools
import json
import logging
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest
from helpers import save_digits

from feedax.cli import compilation_cache
from feedax.cli.compilation_cache import remove_least_recently_used, remove_torn

# Every program is compiled in a process of its own, forked before JAX has started anything.
FORKING = r"""
import collections, json, os, signal, sys, time, warnings
import jax, jax.monitoring
import jax.numpy as jnp, numpy as np
from feedax.cli.compilation_cache import use_compilation_cache

sizes = [10, 100, 100_000]

def compile_all():
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
    assert use_compilation_cache() is not None
    for size in sizes:  # noise cannot be compressed: an entry has as many bytes, and more
        noise = np.random.default_rng(0).random(size, np.float32)
        def program(x): return x @ noise
        program.__name__ = f"of_{size}_numbers"
        jax.jit(program)(np.ones_like(noise)).block_until_ready()
    return events

def start(do):
    with warnings.catch_warnings(action="ignore"):  # of JAX's threads: there are none yet
        child = os.fork()
    if not child:
        code = 1
        try:
            do()
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child

def wait(*children):
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(
        children)

def count():
    sys.stdout.write(json.dumps(compile_all()) + "\n")  # in one piece
"""

# Trains in a process of its own for each line that comes: the run's name and the cache's folder.
TRAINING = """
import feedax.cli.train
from feedax.cli import main

def train(name, cache):
    for number in (1, 2):
        os.dup2(os.open(f"{name}.{number}", os.O_WRONLY | os.O_CREAT), number)
    os.environ["XDG_CACHE_HOME"] = os.path.abspath(cache)
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
    flags = "--epochs 1 --hidden 16 --dataset npz:digits.npz --out"
    assert main(["train", *flags.split(), name]) == 0
    with open(f"{name}.json", "w") as counts:
        json.dump(events, counts)

for line in sys.stdin:
    wait(start(lambda: train(*line.split())))
    print("trained", flush=True)
"""


def script(body: str, folder: Path, **more: str) -> list[dict[str, int]]:
    """Run a script after FORKING; nothing on stderr, and every printed line is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING + body],
        env=os.environ | {"XDG_CACHE_HOME": str(folder)} | more,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


def whole(path: Path) -> bool:
    try:
        return bool(zlib.decompress(path.read_bytes()))
    except zlib.error:
        return False


def test_a_damaged_entry_is_rewritten_and_then_a_start_compiles_nothing(tmp_path):
    save_digits(tmp_path / "digits.npz", 300, 100)
    trainers = subprocess.Popen(
        [sys.executable, "-c", FORKING + TRAINING],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def train(name: str, cache: str = "cache") -> tuple[collections.Counter[str], list[str]]:
        """Also what is said on stderr."""
        trainers.stdin.write(f"{name} {cache}\n")
        trainers.stdin.flush()
        assert trainers.stdout.readline() == "trained\n"
        said = (tmp_path / f"{name}.2").read_text().splitlines()
        assert all(line.startswith("feedax train: ") for line in said)
        return collections.Counter(json.loads((tmp_path / f"{name}.json").read_text())), said

    cold, said = train("cold")
    assert cold["cache_misses"] == len(entries(tmp_path)) > 0
    damages = itertools.cycle([truncate, empty, flip])
    for entry in entries(tmp_path):
        next(damages)(entry)
    healed, said_when_healed = train("healed")
    assert healed["cache_misses"] == cold["cache_misses"]
    assert all(whole(entry) for entry in entries(tmp_path))
    assert len(said_when_healed) == len(said)

    # The path of the folder is not a part of the keys.
    (tmp_path / "cache").rename(tmp_path / "moved")
    warm, _ = train("warm", cache="moved")
    trainers.communicate()
    assert (warm["cache_misses"], warm["cache_hits"]) == (0, warm["compile_requests_use_cache"])
    results = {(tmp_path / name / "params.safetensors").read_bytes() for name in ("cold", "warm")}
    assert len(results) == 1


def truncate(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size // 2)


def empty(entry: Path) -> None:
    os.truncate(entry, 0)


def flip(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)


def test_a_process_killed_while_it_writes_leaves_nothing_that_the_next_start_does_not_heal(
    tmp_path,
):
    script(
        """
from pathlib import Path
from feedax.cli.compilation_cache import is_whole

folder = Path(os.environ["XDG_CACHE_HOME"])
sizes[-1] = 2_000_000

def is_torn(path):
    return not is_whole(path.read_bytes())

for attempt in range(40):
    child = start(count)
    if attempt % 4 == 0:
        time.sleep(0.2 * (attempt // 4))
    else:  # as soon as an entry is seen that takes a moment to write
        while not list(folder.rglob("jit_of_2000000_numbers-*-cache")):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if any(map(is_torn, folder.rglob("*-cache"))):
        break
    for path in folder.rglob("*-cache"):
        path.unlink()
""",
        tmp_path,
    )
    assert not all(whole(entry) for entry in entries(tmp_path))
    next_two = "sizes[-1] = 2_000_000\nwait(start(count))\nwait(start(count))"
    healing, healed = script(next_two, tmp_path)
    assert healing["cache_misses"] > 0
    assert all(whole(entry) for entry in entries(tmp_path))
    assert healed.get("cache_misses", 0) == 0


def test_two_processes_at_once_share_a_cache(tmp_path):
    both = "wait(start(count), start(count))\n"
    *_, third, fourth = script(both + both, tmp_path)
    assert third.get("cache_misses", 0) == fourth.get("cache_misses", 0) == 0
    assert all(whole(entry) for entry in entries(tmp_path))


def test_a_full_disk_only_costs_the_time_to_compile(tmp_path):
    full = """
import resource
def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    count()
wait(start(fill))
wait(start(count))
wait(start(count))
"""
    _, healing, healed = script(full, tmp_path)
    assert healing["cache_misses"] > 0
    assert healed.get("cache_misses", 0) == 0


@pytest.fixture
def _unset(monkeypatch):
    """The process as it was started, whatever other tests have done to JAX's settings."""
    before = {name: getattr(jax.config, name) for name in SET}
    for name in SET:
        monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


SET = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_max_size",
    *compilation_cache.SETTINGS,
)


@pytest.mark.usefixtures("_unset")
def test_settings_of_the_users_own_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert compilation_cache.use_compilation_cache() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", "/somewhere")
    assert compilation_cache.use_compilation_cache() is None
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation_cache.use_compilation_cache() is None
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_max_size", 0)  # JAX's way to say none
    assert compilation_cache.use_compilation_cache() is None
    assert list(tmp_path.iterdir()) == []

    jax.config.update("jax_compilation_cache_max_size", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    folder = compilation_cache.use_compilation_cache()
    assert folder == tmp_path / "feedax" / "compiled" / compilation_cache.machine()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


@pytest.mark.usefixtures("_unset")
def test_the_users_bound_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache.use_compilation_cache()
    assert folder is not None
    for number in range(3):
        (folder / f"{number}-cache").write_bytes(zlib.compress(b"a program"))
        os.utime(folder / f"{number}-cache", (number, number))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", 2 * (folder / "0-cache").stat().st_size)
    assert compilation_cache.use_compilation_cache() == folder
    assert [path.name for path in entries(tmp_path)] == ["1-cache", "2-cache"]
    assert jax.config.jax_compilation_cache_max_size == -1


@pytest.mark.usefixtures("_unset")
@pytest.mark.skipif(os.name == "nt", reason="the permissions are POSIX's")
def test_only_the_user_can_read_and_write_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache.use_compilation_cache()
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


@pytest.mark.usefixtures("_unset")
def test_without_a_folder_that_can_be_used_one_line_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "feedax").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="feedax"):
        assert compilation_cache.use_compilation_cache() is None
    assert caplog.messages == [
        f"compilation cache: every start compiles anew, because there is no folder to keep the "
        f"programs in ({tmp_path}/feedax/compiled: Not a directory); set XDG_CACHE_HOME to one "
        f"that can be written to"
    ]
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be chosen here")
def test_programs_for_another_number_of_cpus_are_kept_apart():
    cpus = os.sched_getaffinity(0)
    if len(cpus) == 1:
        pytest.skip("there is only one CPU")
    all_of_them = compilation_cache.machine()
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert compilation_cache.machine() == all_of_them.replace(f"-{len(cpus)}-cpus", "-1-cpus")
    finally:
        os.sched_setaffinity(0, cpus)


def test_the_longest_unused_entries_of_all_machines_make_room(tmp_path):
    for number, machine in enumerate(["a", "b", "a", "b"]):
        (tmp_path / machine).mkdir(exist_ok=True)
        entry = tmp_path / machine / f"{number}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1000 - number, 900))
    (tmp_path / "a" / compilation_cache.CHECKED).write_bytes(bytes(1000))
    remove_least_recently_used(tmp_path, 400, 4)
    assert len(entries(tmp_path)) == 4
    remove_least_recently_used(tmp_path, 399, 4)
    assert [path.name for path in entries(tmp_path)] == ["0-cache", "2-cache", "1-cache"]
    remove_least_recently_used(tmp_path, 399, 2)
    assert [path.name for path in entries(tmp_path)] == ["0-cache", "1-cache"]
    remove_least_recently_used(tmp_path, 100, 2)
    assert [path.name for path in entries(tmp_path)] == ["0-cache"]


def test_an_entry_is_read_once_and_removed_when_it_has_changed_since(tmp_path):
    entry = tmp_path / "program-cache"
    entry.write_bytes(zlib.compress(b"a program"))
    remove_torn(tmp_path)
    assert entry.exists()
    # Not whole, but of the size and time that it was checked with: it is not read again.
    status = entry.stat()
    flip(entry)
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))
    remove_torn(tmp_path)
    assert entry.exists()
    # Whole, but of another time: JAX never writes over an entry.
    entry.write_bytes(zlib.compress(b"a program"))
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    remove_torn(tmp_path)
    assert not entry.exists()


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"\xff", b"7"])
def test_a_damaged_list_of_what_was_checked_is_written_anew(tmp_path, content):
    (tmp_path / "program-cache").write_bytes(zlib.compress(b"a program"))
    (tmp_path / compilation_cache.CHECKED).write_bytes(content)
    remove_torn(tmp_path)
    assert list(json.loads((tmp_path / compilation_cache.CHECKED).read_text())) == ["program-cache"]
