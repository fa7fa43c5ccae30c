"""The lock by which one process writes in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.errors import InputError

_locked: set[Path] = set()  # a record lock does not exclude its own process, so that is remembered here


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. The system lets go of it when the process ends, however it ends.

    A record lock rather than `flock`: workers forked by the data loader would inherit a `flock`, and one that
    outlives a killed trainer would keep the folder locked.

    Raises:
      InputError: another process, or another run of this process, holds it.
    """
    path = folder.resolve() / ".lock"
    busy = InputError(f"another process is training in {folder}: wait for it, stop it, or use another --workdir")
    if path in _locked:
        raise busy
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less what the umask takes away
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise busy from None
        _locked.add(path)
        try:
            yield
        finally:
            _locked.discard(path)
    finally:
        os.close(handle)
