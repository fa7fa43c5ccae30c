"""A full disk, told in one line, and lines appended whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.errors import InputError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def space_for(what: str) -> Iterator[None]:
    """Turns the errors of a full disk (or quota, or file size limit) into one line about `what`.

    Raises:
      InputError: there was no space.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if not _is_full(error):
            raise
        raise InputError(f"no space left on the disk: {what}; free some and run the same command again") from error


def append_lines(path: Path, lines: bytes) -> None:
    """Adds whole lines, in one unbuffered write: a kill leaves at most a torn last one, which the next call cuts off.

    Raises:
      OSError: they cannot be written, or not all of them; then none of them is there.
    """
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            end = path.read_bytes().rfind(b"\n") + 1
            file.truncate(end)
        if file.write(lines) != len(lines):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_full(error: OSError | ValueError) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore raises ValueError, with the number in its text
    return code is not None and int(code[1]) in FULL
