"""Which device holds what: the mesh, and how states and batches are laid over it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llm_jax.core.dims import Lettered, is_lettered, partition
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size

AXES = ("data", "fsdp", "tensor", "sequence", "expert", "stage")  # the axes that the alphabet's rules speak of


@dataclasses.dataclass(frozen=True)
class Layout(Part):
    """How many devices share each kind of work; their product is the number of devices used.

    `data` splits the batch, `fsdp` the batch and the weights, `tensor` the heads, hidden features and vocabulary.
    `data=-1` takes all the devices that the others leave.
    """

    data: Size | Literal[-1] = -1
    fsdp: Size = 1
    tensor: Size = 1

    def mesh(self) -> Mesh:
        """The mesh over the first devices there are.

        Raises:
          InputError: there are too few devices, or they cannot be divided.
        """
        rest, devices = self.fsdp * self.tensor, jax.devices()
        data = len(devices) // max(rest, 1) if self.data == -1 else self.data
        if min(data, self.fsdp, self.tensor) < 1 or data * rest > len(devices):
            asked = "x".join(str(n) for n in (self.data, self.fsdp, self.tensor))
            raise InputError(f"layout {asked} (data x fsdp x tensor) does not fit on {len(devices)} device(s)")
        shape = (data, self.fsdp, self.tensor) + (1,) * (len(AXES) - 3)
        used = np.asarray(devices[: math.prod(shape)]).reshape(shape)
        return Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter, from its letters. `boxed` is what a model's `init` returned (or its shapes)."""

    def one(leaf: Lettered) -> NamedSharding:
        return NamedSharding(mesh, partition(leaf.letters, leaf.value.shape, mesh))

    return jax.tree.map(one, boxed, is_leaf=is_lettered)


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows over the data and fsdp axes.

    Raises:
      InputError: they do not divide.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise InputError(f"a batch of {rows} rows cannot be divided over data x fsdp = {parts} devices")
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, on its devices."""
    rows = next(iter(batch.values())).shape[0] * jax.process_count()
    sharding = batch_sharding(mesh, rows)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
