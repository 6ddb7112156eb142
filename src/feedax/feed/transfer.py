"""Arrays of the host onto devices: which devices those are, and when JAX must be given a copy."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from feedax.errors import BatchError, first_line
from feedax.feed.batch import Masked, PyTree
from feedax.machine import usable_cpus
from feedax.storage.snapshot import is_key

Place = Any
"""A device, a sharding, or None for the default device."""
ALIGNMENT = 64
"""Bytes: from such an address on, JAX takes the host's memory for its own on the CPU."""
WHO = "prefetch_to_device"
AXES = ("process", "device")


def on_device(tree: PyTree) -> PyTree:
    """A tree with its numbers and arrays of the host on JAX's default device.

    The transfer is explicit, as ``jax.transfer_guard("disallow")`` requires.

    >>> on_device({"rate": 0.5})
    {'rate': Array(0.5, dtype=float32, weak_type=True)}
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf), tree
    )


def scalar(value: Any) -> jax.Array:
    """A number, or an array of numbers, in JAX's default floating dtype on its default device."""
    if isinstance(value, jax.Array):
        return value.astype(float)
    return jax.device_put(np.asarray(value, jax.dtypes.canonicalize_dtype(float)))


def with_the_call() -> AbstractContextManager[None]:
    """Let arrays of the host go along with the call of a compiled function.

    On the CPU this is the cheapest transfer. It is meant, whatever ``jax.transfer_guard`` says of
    others.
    """
    return jax.transfer_guard_host_to_device("allow")


class Transfer:
    """Puts the leaves of batches on devices.

    Args:
        sharding: a device, a sharding, None for the default device, or a PyTree of these that is
            a prefix of every batch.
        foreign: whether a batch's memory may be written to later.

    Raises:
        BatchError: the sharding is something else.
    """

    def __init__(self, sharding: PyTree = None, foreign: bool = True) -> None:
        self._sharding = sharding
        self._foreign = foreign
        for place in self._places():
            if not isinstance(place, jax.Device | Sharding | None):
                raise BatchError(
                    f"{WHO}: sharding must be a device, a sharding or a PyTree of these, and it "
                    f"holds {place!r}; give a jax.sharding.NamedSharding"
                )

    @property
    def spans_hosts(self) -> bool:
        """Whether some array has parts on other hosts' devices."""
        return any(map(_spans_hosts, self._places()))

    @property
    def shares_memory(self) -> bool:
        """Whether all arrays may be the host's own memory."""
        return all(map(shares_memory, self._places()))

    def processes(self) -> set[int]:
        """The hosts whose devices hold parts of the arrays."""
        shardings: list[Any] = [p for p in self._places() if isinstance(p, Sharding)]
        return {device.process_index for place in shardings for device in place.device_set}

    def put(self, batch: PyTree, wait: bool) -> PyTree:
        """A batch on its devices.

        Args:
            batch: PyTree of arrays.
            wait: return only when the host's memory is read no more.

        Raises:
            BatchError: the batch does not fit its sharding.
        """
        leaves, structure = jax.tree.flatten(batch)
        places = self._for_leaves(batch)
        if self._foreign:
            leaves = list(map(own, leaves, places))
        try:
            if self.spans_hosts:
                arrays = list(map(_put_one, leaves, places))
            elif any(place is not None for place in places):
                arrays = jax.device_put(leaves, places)
            else:
                arrays = jax.device_put(leaves)
        except ValueError as error:
            raise BatchError(
                f"{WHO}: a batch must divide among the devices of its sharding, and one does not "
                f"({first_line(error)}); leave short batches out with last='drop', or fill them up "
                "with last='pad' or 'wrap'"
            ) from error
        return jax.tree.unflatten(structure, jax.block_until_ready(arrays) if wait else arrays)

    def _places(self) -> list[Any]:
        return jax.tree.leaves(self._sharding, is_leaf=lambda place: place is None)

    def _for_leaves(self, batch: PyTree) -> list[Place]:
        if isinstance(batch, Masked):
            inner = self._for_leaves(batch.batch)
            return [*inner, _of_the_mask(inner[0])]
        places: list[Place] = []
        try:
            jax.tree.map(
                lambda place, part: places.extend([place] * len(jax.tree.leaves(part))),
                self._sharding,
                batch,
                is_leaf=lambda place: place is None,
            )
        except ValueError as error:
            raise BatchError(
                f"{WHO}: sharding must have the structure of a batch or of its upper part, and it "
                f"is {jax.tree.structure(self._sharding)} for {jax.tree.structure(batch)}; give "
                "one sharding for all, or one for each part of a batch that is no text"
            ) from error
        return places


def _put_one(leaf: Any, place: Place) -> jax.Array:
    if _spans_hosts(place):
        assert isinstance(place, Sharding)
        array = np.asarray(leaf)
        held = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.make_array_from_process_local_data(place, array.astype(held, copy=False))
    return jax.device_put(leaf, place)


def _spans_hosts(place: Place) -> bool:
    return isinstance(place, Sharding) and not place.is_fully_addressable


def _of_the_mask(place: Place) -> Place:
    """The mask is sharded as the first dimension of the batch's first array."""
    if not isinstance(place, NamedSharding):
        return place
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[:1]), memory_kind=place.memory_kind)


def own(leaf: Any, place: Place = None) -> Any:
    """The leaf, or a copy of it where JAX may share its memory."""
    if isinstance(leaf, jax.Array) or not shares_memory(place):
        return leaf
    # In the dtype that it is given there, or a later conversion would read the memory itself.
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype))
    size = leaf.size * dtype.itemsize
    # Aligned, so that JAX takes this copy as it is and makes no second one.
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + size].view(dtype).reshape(leaf.shape)
    np.copyto(copy, leaf, casting="unsafe")
    return copy


def shares_memory(place: Place = None) -> bool:
    """Whether arrays there may be the host's own memory (jax-ml/jax#37830)."""
    devices: Any
    if isinstance(place, Sharding):
        devices, kind = place.addressable_devices, place.memory_kind
    else:
        device = place or jax.config.jax_default_device or jax.local_devices()[0]  # type: ignore[attr-defined]
        if isinstance(device, str):
            return device == "cpu"
        devices, kind = {device}, None
    return kind not in (None, "device") or any(device.platform == "cpu" for device in devices)


class Devices:
    """A mesh of the devices of all processes, or the one default device without a mesh.

    Parameters and resident examples are replicated; XLA divides a batch by rows, evenly or not,
    inside the compiled step (`spread`).

    Args:
        count: devices of each process; None for all of an accelerator's, and for one CPU.
        everywhere: whether the devices of the other processes belong to it too.
        who: speaks, in an error.

    Attributes:
        count: devices of this process.
        processes: how many processes there are.

    Raises:
        BatchError: this process has fewer.
    """

    def __init__(self, count: int | None = None, everywhere: bool = True, who: str = "fit") -> None:
        local = jax.local_devices()
        if count is None:
            count = 1 if local[0].platform == "cpu" else len(local)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(local):
            raise BatchError(
                who=who,
                rule=f"devices=N must be from 1 to the {len(local)} that JAX has here",
                found=f"it is {count!r}",
                remedy=f"give devices={len(local)}, or JAX more ({_more(local[0].platform)})",
            )
        self.count = count
        self.processes = jax.process_count() if everywhere else 1
        self.mesh: Mesh | None = None
        if count * self.processes > 1:
            each: dict[int, list[jax.Device]] = {}
            for device in jax.devices() if everywhere else local:
                each.setdefault(device.process_index, []).append(device)
            grid = np.array([each[process][:count] for process in sorted(each)])
            self.mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)

    def __str__(self) -> str:
        """For a person: `the CPU, 2 cores`, or `2 x NVIDIA H100`."""
        device, count = jax.local_devices()[0], self.count * self.processes
        if device.platform == "cpu" and count == 1:
            return f"the CPU, {usable_cpus()} core{'s' * (usable_cpus() > 1)}"
        return f"{count} x {device.device_kind}"

    @property
    def copies(self) -> int:
        """How many copies of resident examples one memory holds."""
        # Every accelerator has its own memory; the CPU's devices share one.
        return self.count if jax.default_backend() == "cpu" else 1

    @cached_property
    def replicated(self) -> NamedSharding | None:
        """The sharding of arrays that every device needs whole."""
        return self._sharding(PartitionSpec())

    @cached_property
    def shared(self) -> NamedSharding | None:
        """The sharding of arrays whose first axis is divided among the devices."""
        return self._sharding(PartitionSpec(AXES))

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies of arrays on every device."""
        impls = jax.tree.map(_key_impl, tree)
        data = jax.tree.map(lambda a: jax.random.key_data(a) if _key_impl(a) else a, tree)
        data = Transfer(self.replicated).put(data, wait=True)
        return jax.tree.map(
            lambda a, impl: jax.random.wrap_key_data(a, impl=impl) if impl else a, data, impls
        )

    def local(self, tree: PyTree) -> PyTree:
        """This process's view of replicated arrays, for computations of its own."""
        if jax.process_count() == 1:
            return tree
        mine = Devices(self.count, everywhere=False).replicated

        def view(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array):
                return leaf
            parts = [shard.data for shard in leaf.addressable_shards]
            if mine is None:
                return parts[0]
            return jax.make_array_from_single_device_arrays(leaf.shape, mine, parts)

        return jax.tree.map(view, tree)

    def rows(self, count: int) -> NamedSharding | None:
        """The sharding of a batch of `count` examples, if every process has all of them.

        Arrays can only be divided evenly; others are replicated, and divided in the step.
        """
        if self.mesh is None or self.processes > 1 or count % self.count:
            return self.replicated
        return self.shared

    def parts(self, count: int) -> NamedSharding | None:
        """The sharding of a batch of which each process has `count` examples of its own."""
        return self._sharding(PartitionSpec(AXES if count % self.count == 0 else AXES[0]))

    def spread(self, batch: PyTree) -> PyTree:
        """Divide a batch among the devices, evenly or not; pure, for use inside compiled code."""
        if self.mesh is None:
            return batch
        rows = self.shared
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, rows), batch)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, spec)


def _key_impl(leaf: Any) -> str:
    """The name of random keys' implementation, "" of anything else."""
    return str(jax.random.key_impl(leaf)) if is_key(leaf) else ""


def _more(platform: str) -> Any:
    return "JAX_NUM_CPU_DEVICES" if platform == "cpu" else "CUDA_VISIBLE_DEVICES"
