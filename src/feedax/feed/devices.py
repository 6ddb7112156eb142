"""The devices that train one model together, each on its rows of every batch."""

from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from feedax.errors import BatchError
from feedax.feed.batch import PyTree
from feedax.feed.place import Placement
from feedax.storage.snapshot import is_key

AXES = ("process", "device")


class Devices:
    """A mesh of the devices of all processes, or the one default device without a mesh.

    Parameters and resident examples are replicated; a batch is cut into rows by XLA, evenly or
    not, inside the compiled step (`spread`).

    Args:
        count: devices of each process; None for all of an accelerator's, and for one CPU.
        everywhere: whether the devices of the other processes belong to it too.

    Attributes:
        count: devices of this process.
        processes: how many processes there are.

    Raises:
        BatchError: this process has fewer.
    """

    def __init__(self, count: int | None = None, everywhere: bool = True) -> None:
        local = jax.local_devices()
        if count is None:
            count = 1 if local[0].platform == "cpu" else len(local)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(local):
            raise BatchError(
                f"fit: devices must be from 1 to the {len(local)} that JAX has here, and it is "
                f"{count!r}; leave it out, or give JAX more ({_more(local[0].platform)})"
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

    @property
    def copies(self) -> int:
        """How many copies of resident examples one memory holds."""
        # Every accelerator has its own; the CPU's devices have one together.
        return self.count if jax.default_backend() == "cpu" else 1

    @cached_property
    def replicated(self) -> NamedSharding | None:
        """Where everything goes of which each device needs all."""
        return self._sharding(PartitionSpec())

    @cached_property
    def shared(self) -> NamedSharding | None:
        """Where arrays go of whose first axis each device has its part."""
        return self._sharding(PartitionSpec(AXES))

    def replicate(self, tree: PyTree) -> PyTree:
        """Arrays of the host, or of this process's first device, on every device; copies."""
        impls = jax.tree.map(_key_impl, tree)
        data = jax.tree.map(lambda a: jax.random.key_data(a) if _key_impl(a) else a, tree)
        data = Placement(self.replicated).put(data, wait=True)
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
        """Where a batch of so many examples goes, when each process has all of it.

        Arrays can only be cut evenly; what cannot goes everywhere and is cut in the step.
        """
        if self.mesh is None or self.processes > 1 or count % self.count:
            return self.replicated
        return self.shared

    def columns(self, count: int) -> NamedSharding | None:
        """Where a batch goes of which each process has so many examples, its own."""
        return self._sharding(PartitionSpec(AXES if count % self.count == 0 else AXES[0]))

    def spread(self, batch: PyTree) -> PyTree:
        """Cut a batch into rows, evenly or not; pure, for use inside compiled code."""
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
