"""Processes that make batches ahead of the training."""

from __future__ import annotations

import functools
import pickle
import re
import signal
import sys
import weakref
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cloudpickle
import grain
from absl import flags

from llm_jax.core.errors import InputError
from llm_jax.core.user_modules import load_module, user_sources
from llm_jax.core.workers import UNGUARDED, end_with_parent

DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # what grain says of a worker


class Sent(grain.MapDataset):
    """A dataset as a worker gets it, with the user's own files that its parts may be of.

    Whoever starts a process writes through a pipe all that it is to have, and waits until that was read: for ever, if
    the process dies before. So a name goes through the pipe, which has room for it, and the rest is in shared memory.
    """

    def __init__(self, dataset: grain.MapDataset):
        """
        Raises:
          InputError: a part of it cannot be sent.
        """
        super().__init__()
        try:
            content = pickle.dumps((user_sources(), cloudpickle.dumps(dataset)))
        except Exception as error:  # whatever a part of the user's raises when it is pickled
            raise InputError(f"the data cannot be sent to data.workers ({error}): set data.workers=0") from error
        memory = SharedMemory(create=True, size=len(content))
        _bytes(memory)[: len(content)] = content
        self._name = memory.name
        self._free: Callable[[], None] | None = weakref.finalize(self, _free, memory)  # at the latest when Python ends

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_free": None}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int | slice) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._dataset[index]

    @functools.cached_property
    def _dataset(self) -> grain.MapDataset:
        """In the worker: what was sent, once the files are known that its classes are of."""
        memory = SharedMemory(self._name)
        sources, dataset = pickle.loads(_bytes(memory))
        memory.close()
        for path, source in sources.items():
            load_module(path, source)
        return cloudpickle.loads(dataset)

    def close(self) -> None:
        """Frees the memory."""
        if self._free is not None:
            self._free()


def _bytes(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None, "it is open"
    return memory.buf


def _free(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()


def ahead(sent: Sent, workers: int) -> Any:
    """An iterator over `sent`, whose elements so many processes make in turn."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags, also where there is no absl app
    options = grain.MultiprocessingOptions(num_workers=workers)
    dataset = sent.to_iter_dataset(grain.ReadOptions(num_threads=0))
    return iter(dataset.mp_prefetch(options, worker_init_fn=_begin))


def _begin(*_: int) -> None:
    end_with_parent()


def death(error: RuntimeError) -> InputError | None:
    """What to tell the user, if the error is grain's of a worker that died."""
    if not (found := DIED.search(str(error))):
        return None
    status = int(found[1])
    if status == UNGUARDED:
        script = getattr(sys.modules["__main__"], "__file__", "your script")
        guard = 'if __name__ == "__main__":'
        return InputError(
            f"each data worker runs {script} again: put what it does under `{guard}`, or set data.workers=0"
        )
    if status >= 0:
        return InputError(
            f"a data worker ended with status {status}, for the reason above: set data.workers=0 to see more"
        )
    why = ", as the system does where memory runs out" if -status == signal.SIGKILL else ""
    return InputError(
        f"a data worker was ended by {signal.Signals(-status).name}{why}: run the same command again, with fewer "
        "data.workers if it comes back"
    )
