"""JAX's compilation cache for the command line: the second start of a run compiles nothing.

JAX writes an entry in place and never replaces one. A process killed meanwhile leaves a part of an
entry, which every later start would warn of and compile again. So each start first reads the
entries that it finds new or changed, and removes those that are not whole. It removes the least
recently used ones too where they take too much space: JAX's own bound would lock the folder at
every access, read a small file for each entry at every write, and write nothing more once one of
those files is missing.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import warnings
import zlib
from pathlib import Path
from typing import Any

from feedax.errors import FeedaxError
from feedax.files import remove_leftovers, replace_file
from feedax.machine import cache_folder, usable_cpus

LOGGER = logging.getLogger("feedax")

MAX_BYTES, MAX_ENTRIES = 2**30, 2_000
"""What the entries of all machines that share the folder may be at a start; each is looked at."""

CHECKED = "checked.json"
"""Holds the size and the time of change of each entry that was found whole."""

SETTINGS = {
    # Small programs are most of what a small network has.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # XLA's own caches would not be bounded here, and would make the folder's path a part of every
    # entry's key.
    "jax_persistent_cache_enable_xla_caches": "none",
}
"""What JAX is told, unless the environment says otherwise."""


def use_compilation_cache() -> Path | None:
    """Let this process keep the programs it compiles for the next one, and return the folder.

    Whoever has set JAX's cache, or switched it off, keeps what they have set; then it is None.
    """
    import jax

    config: Any = jax.config  # its names are made when JAX starts
    ours = config.jax_enable_compilation_cache and not config.jax_compilation_cache_dir
    max_bytes = config.jax_compilation_cache_max_size
    if not ours or max_bytes == 0 or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    try:
        root = cache_folder() / "compiled"
        folder = root / machine()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it gets executed
        folder.mkdir(mode=0o700, exist_ok=True)
        remove_least_recently_used(root, MAX_BYTES if max_bytes < 0 else max_bytes, MAX_ENTRIES)
        remove_leftovers(folder)
        remove_torn(folder)
    except (OSError, FeedaxError) as error:
        LOGGER.warning(
            "compilation cache: every start compiles anew, because there is no folder to keep the "
            "programs in (%s); set XDG_CACHE_HOME to one that can be written to",
            f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error,
        )
        return None
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            config.update(name, value)
    config.update("jax_compilation_cache_max_size", -1)  # it is bounded here
    config.update("jax_compilation_cache_dir", str(folder))
    # A full disk, or an entry that another process is just writing: the program is compiled, and
    # nobody need know.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    return folder


def machine() -> str:
    """A name for what XLA compiles for here: the same for machines that can share programs.

    JAX's key of an entry leaves out the number of CPUs, which XLA splits a program for.
    """
    kinds = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    described = ""
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")  # like the others
        lines = first.splitlines()
        described = "".join(f"{line}\n" for line in lines if line.startswith(kinds))
    digest = hashlib.sha256(described.encode()).hexdigest()
    return f"{platform.machine() or 'unknown'}-{usable_cpus()}-cpus-{digest[:8]}"


def remove_torn(folder: Path) -> None:
    """Remove the entries of a folder that are not whole; those checked earlier are not read."""
    try:
        checked = dict(json.loads((folder / CHECKED).read_bytes()))
    except (OSError, ValueError, TypeError):
        checked = {}  # then they are read again
    whole = {}
    for path, status in _entries(folder):
        stamp = [status.st_size, status.st_mtime_ns]
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours
            known = checked.get(path.name)
            # JAX never changes an entry that there is.
            if is_whole(path.read_bytes()) if known is None else known == stamp:
                whole[path.name] = stamp
            else:
                path.unlink()
    if whole != checked:
        with contextlib.suppress(FeedaxError):
            replace_file(folder / CHECKED, json.dumps(whole).encode())


def remove_least_recently_used(root: Path, max_bytes: int, max_entries: int) -> None:
    """Remove entries from the folders in `root`, the longest unused first, until the rest fits."""
    found = [entry for folder in root.iterdir() if folder.is_dir() for entry in _entries(folder)]
    size, count = sum(status.st_size for _, status in found), len(found)
    # Some file systems don't keep the time of access; there the oldest go first.
    found.sort(key=lambda entry: max(entry[1].st_atime_ns, entry[1].st_mtime_ns))
    for path, status in found:
        if size <= max_bytes and count <= max_entries:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            size, count = size - status.st_size, count - 1


def is_whole(entry: bytes) -> bool:
    """Whether the compressed bytes of an entry can be decompressed to their end.

    >>> packed = zlib.compress(b"a program")
    >>> is_whole(packed), is_whole(packed[:-1]), is_whole(b"")
    (True, False, False)
    """
    try:
        if entry.startswith(b"\x28\xb5\x2f\xfd"):
            _decompress_zstd(entry)
        else:
            zlib.decompress(entry)
    except ImportError:
        return True  # another Python's, which reads it itself
    except Exception:  # each of the three modules has its own
        return False
    return True


def _decompress_zstd(entry: bytes) -> None:
    try:
        decompress = importlib.import_module("compression.zstd").decompress  # from Python 3.14 on
    except ImportError:
        decompress = importlib.import_module("zstandard").ZstdDecompressor().decompress
    decompress(entry)


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The entries in a folder, with what the operating system knows of each."""
    found = []
    with os.scandir(folder) as files:
        for file in files:
            if file.name.endswith("-cache"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((Path(file.path), file.stat()))
    return found
