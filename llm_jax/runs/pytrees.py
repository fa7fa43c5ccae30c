"""A pytree of arrays on the disk, by Orbax (https://orbax.readthedocs.io)."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.errors import InputError, nearest


def save_async(path: Path, state: Any) -> Any:
    """Begins to write, and returns as soon as `state` may be donated; the `result()` of what it returns waits."""
    ocp = _orbax()
    with _context(ocp):
        return ocp.save_async(path, state)


def load(path: Path, template: Any, what: str, partial: bool) -> Any:
    """The arrays of the pytree at `path`, laid out as `template` says.

    Args:
      template: a `jax.ShapeDtypeStruct` (with its sharding) for each array.
      what: the pytree's name in messages.
      partial: `template` has only some of the arrays, and may have them in another dtype.

    Raises:
      InputError: it holds other arrays.
    """
    ocp = _orbax()
    _compare(what, _arrays(ocp.metadata(path).metadata), _arrays(template), partial)
    with _context(ocp, partial):
        return jax.block_until_ready(ocp.load(path, jax.tree.map(_placed, template)))


@functools.cache
def _orbax() -> Any:
    """Imported late: it takes a second or two."""
    from orbax.checkpoint import v1 as ocp

    # Its threads and tasks log every error, with a traceback, that is raised anyway.
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    logging.getLogger("asyncio").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.getMessage())
    return ocp


@contextlib.contextmanager
def held_logs() -> Iterator[list[logging.LogRecord]]:
    """What Orbax logs in the meantime: shown at the end, unless it was taken out of the list."""
    held: list[logging.LogRecord] = []
    logger = logging.getLogger("absl")

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    logger.addFilter(hold)
    try:
        yield held
    finally:
        logger.removeFilter(hold)
        for record in held:
            logger.handle(record)


def _context(ocp: Any, partial: bool = False) -> Any:
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained weights shrink by 8%, for several times the processor's time
    context.pytree.loading.partial_load = partial
    return context


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """A template without a sharding is for one device; Orbax would take that of the saving machine, and warn."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _arrays(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and type of each array by its path, which is the same for a field, a key and an index."""

    def word(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("name", "key", "idx") if hasattr(key, a)))

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(map(word, path)): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _compare(what: str, saved: Mapping[str, Any], wanted: Mapping[str, Any], partial: bool) -> None:
    for name, (shape, dtype) in wanted.items():
        if name not in saved:
            field, fields = name.partition(".")[0], {path.partition(".")[0] for path in saved}
            raise InputError(f"{what} has no {name!r}" + ("" if field in fields else f": {nearest(field, fields)}"))
        if saved[name][0] != shape:
            raise InputError(f"{what} has {name} of shape {saved[name][0]}, not {shape}")
        if saved[name][1] != dtype and not partial:
            raise InputError(f"{what} has {name} of type {saved[name][1]}, not {dtype}")
    if not partial and (surplus := [name for name in saved if name not in wanted]):
        raise InputError(f"{what} has {surplus[0]!r}, which is not in this experiment's state")
