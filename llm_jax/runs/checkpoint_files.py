"""Which entries of a folder of checkpoints are checkpoints, and how one is removed.

Whoever looks into that folder asks here, since it may hold other things too: what a killed session was writing, and
whatever a user or a file manager put there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.files import unused

UNFINISHED = re.compile(r"([0-9]{8,})\.(saving|deleting).*", re.DOTALL)  # Orbax, too, adds a suffix while it writes


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints that were finished, sound or not, oldest first. Other folders and files are none."""
    names = [path.name for path in folder.glob("*") if re.fullmatch("[0-9]{8,}", path.name) and path.is_dir()]
    return sorted(int(name) for name in names if f"{int(name):08d}" == name)


def unfinished(folder: Path) -> list[Path]:
    """What a session that was killed had begun to write, or to remove."""
    return [path for path in folder.glob("*") if UNFINISHED.fullmatch(path.name)]


def half_saved(folder: Path) -> set[int]:
    """The steps that a killed session had begun to write."""
    found = (UNFINISHED.fullmatch(path.name) for path in folder.glob("*"))
    return {int(match[1]) for match in found if match and match[2] == "saving"}


@contextlib.contextmanager
def in_use(path: Path, *, removing: bool = False) -> Iterator[None]:
    """Around reading a checkpoint, which a trainer on this machine then leaves there; or around `removing` it.

    Some file systems have no such locks (NFS): there a reader has to notice that the checkpoint is gone.

    Raises:
      BlockingIOError: it is to be removed, and somebody reads it.
    """
    handle = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        handle = os.open(path, os.O_RDONLY)
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if removing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                if removing:
                    raise
            except OSError:
                pass  # no such locks here
        yield
    finally:
        if handle is not None:
            os.close(handle)


def put_aside(path: Path) -> Path:
    """Renames it to what is to be deleted, and returns that: a reader finds a checkpoint whole, or not at all.

    Raises:
      OSError: it cannot be renamed.
    """
    doomed = unused(path.with_name(f"{path.name}.deleting"))
    os.replace(path, doomed)
    return doomed
