"""A folder sealed with the hash of every file in it, so that any later damage shows."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SEAL = "checksums.sha256"  # in the format of `sha256sum --check`; the last line, a comment to it, is its own hash


def seal(folder: Path) -> None:
    """Flushes every file to the disk and writes the list of their hashes, then flushes that too."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    body = "".join(f"{_hash(folder / name, flush=True)}  {name}\n" for name in names)
    path = folder / SEAL
    path.write_text(f"{body}# {hashlib.sha256(body.encode()).hexdigest()}\n")
    for flushed in (path, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(flushed)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder (a file missing, cut short, changed by a bit, unreadable), or None."""
    try:
        body, _, own = (folder / SEAL).read_bytes().rpartition(b"# ")
        if own != hashlib.sha256(body).hexdigest().encode() + b"\n":
            return f"{SEAL} is not as it was saved"
        for line in body.decode().splitlines():
            expected, _, name = line.partition("  ")
            if _hash(folder / name) != expected:
                return f"{name} is not as it was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash(path: Path, flush: bool = False) -> str:
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
