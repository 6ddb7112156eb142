"""Slots of shared memory that carry large arrays from a worker to the trainer, again and again.

Each worker has one piece of anonymous memory. It cuts slots from it as it needs them, fills one
for each batch, and sends where the arrays lie. The trainer maps the slot and hands out arrays over
it; when the last of them is gone (JAX may use their memory as its own for as long as it likes) the
slot goes back to the worker. Nothing here has a name in a file system: when both processes have
gone, so has the memory.
"""

import ctypes
import mmap
import os
import struct
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from feedax.data.workers.pickling import ALIGNMENT, OUT_OF_BAND, address, aligned

SLOTS = 16
SLOT_BYTES = 2**30
"""The most slots of a worker, and the most bytes of them all; the rest goes by the socket."""

_HEADER = mmap.PAGESIZE
_PAGE = mmap.ALLOCATIONGRANULARITY


class Slot(NamedTuple):
    """A part of a worker's memory: where it starts and how long it is, in bytes."""

    start: int
    size: int


class WorkerSlots:
    """A worker's side: it fills slots of the memory behind a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._header = mmap.mmap(fd, _HEADER)
        self._end = _HEADER
        self._maps: dict[Slot, mmap.mmap] = {}
        self._free: list[Slot] = []
        self._open: Slot | None = None
        self._used = 0
        self._expected = 0

    def at(self, position: int) -> None:
        """Record which example of a batch is being loaded, for the trainer to read."""
        struct.pack_into("q", self._header, 0, position)

    def free(self, slots: list[Slot]) -> None:
        """Take back slots whose arrays are gone from the trainer."""
        self._free.extend(slots)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array like `numpy.empty`, in the slot of this batch where there is room."""
        size = int(np.prod(shape)) * dtype.itemsize
        if dtype.hasobject or size < OUT_OF_BAND or not self._reserve(self._used + size):
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self._take(size))

    def place(self, buffers: list[memoryview]) -> tuple[Slot, list[tuple[int, int]]] | None:
        """Where these buffers lie in one slot, copied there if need be; None if there is no room.

        The slot is the trainer's from now on.
        """
        positions = [self._position(buffer) for buffer in buffers]
        copied = [b for b, p in zip(buffers, positions, strict=True) if p is None]
        size = self._used + sum(aligned(buffer.nbytes) for buffer in copied)
        self._expected = max(size, self._expected)
        if not self._reserve(size):
            return None
        places = []
        for buffer, position in zip(buffers, positions, strict=True):
            if position is None:
                position = self._used
                self._take(buffer.nbytes)[:] = np.frombuffer(buffer, np.uint8)
            places.append((position, position + buffer.nbytes))
        slot, self._open, self._used = self._open, None, 0
        assert slot is not None
        return slot, places

    def clear(self) -> None:
        """Discard what was put into the slot of this batch."""
        if self._open is not None:
            self._free.append(self._open)
        self._open, self._used = None, 0

    def _reserve(self, size: int) -> bool:
        """Whether the open slot has room for this many bytes; one is opened if none is open."""
        if self._open is None:
            self._open = self._slot(max(size, self._expected))
        return self._open is not None and size <= self._open.size

    def _take(self, size: int) -> np.ndarray:
        assert self._open is not None
        memory = np.frombuffer(self._maps[self._open], np.uint8, size, self._used)
        self._used = aligned(self._used + size)
        return memory

    def _slot(self, size: int) -> Slot | None:
        fitting = [slot for slot in self._free if slot.size >= size]
        if fitting:
            best = min(fitting, key=lambda slot: slot.size)
            self._free.remove(best)
            return best
        # Batches have grown: the free slots are too small for any later batch. The system gets
        # their memory back; their ranges of the file stay empty.
        for slot in self._free:
            self._maps.pop(slot).madvise(mmap.MADV_REMOVE)
        self._free = []
        size = -(-(size + size // 8) // _PAGE) * _PAGE
        taken = sum(slot.size for slot in self._maps)
        if len(self._maps) >= SLOTS or taken + size > SLOT_BYTES:
            return None
        slot = Slot(self._end, size)
        try:
            os.posix_fallocate(self._fd, slot.start, size)
        except OSError:
            return None  # the system has no memory left: the batch is sent through the socket
        self._end += size
        self._maps[slot] = mmap.mmap(self._fd, size, offset=slot.start)
        return slot

    def _position(self, buffer: memoryview) -> int | None:
        """Where in the open slot a buffer lies, or None if it lies elsewhere."""
        if self._open is None:
            return None
        start = address(buffer) - address(self._maps[self._open])
        return start if 0 <= start <= self._open.size - buffer.nbytes else None


of_this_worker: WorkerSlots | None = None
"""This process's slots, where it is a worker of our own."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _mapped(fd: int, slot: Slot) -> Any:
    """A slot's memory. Python's own mmap would keep a file descriptor for as long as it lives."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    start = _libc.mmap(None, slot.size, access, mmap.MAP_SHARED, fd, slot.start)
    if start == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_ubyte * slot.size).from_address(start)
    weakref.finalize(memory, _libc.munmap, start, slot.size).atexit = False
    return memory


class _Lease(np.ndarray):
    """The bytes of a slot while the trainer has them; a class, to be told from arrays over it."""


class TrainerSlots:
    """The trainer's side: it reads slots and learns when they are no longer in use."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("feedax-slots")
        os.ftruncate(self.fd, _HEADER)
        self._header = mmap.mmap(self.fd, _HEADER)
        self._memory: dict[Slot, Any] = {}
        self._freed: deque[Slot] = deque()
        weakref.finalize(self, os.close, self.fd)

    def position(self) -> int:
        """Which example of its batch the worker is loading."""
        return int(struct.unpack_from("q", self._header, 0)[0])

    def views(self, slot: Slot, places: list[tuple[int, int]]) -> list[memoryview]:
        """The bytes of a slot at these places; while one of them lives the slot stays as it is."""
        if slot not in self._memory:
            # The worker opens a larger slot only when it no longer uses its smaller ones.
            self._memory = {s: m for s, m in self._memory.items() if s.size >= slot.size}
            self._memory[slot] = _mapped(self.fd, slot)
        # Made in one go: a view would have NumPy look through it, at the mapping itself.
        lease = _Lease((slot.size,), np.uint8, self._memory[slot])
        weakref.finalize(lease, self._freed.append, slot).atexit = False
        return [lease[start:stop].data for start, stop in places]

    def freed(self) -> list[Slot]:
        """The slots that came free since the last call."""
        return [self._freed.popleft() for _ in range(len(self._freed))]


assert _PAGE % ALIGNMENT == 0
