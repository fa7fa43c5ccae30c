"""Files that are either whole or absent, and the folder where things worth keeping between runs are kept."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around whatever looks at `path`.

    Raises:
      InputError: the system refuses (no permission, a name too long).
    """
    try:
        yield
    except OSError as error:
        shown = text if len(text := str(path)) <= 200 else f"{text[:200]}..."
        raise InputError(f"cannot read {shown}: {error.strerror or error}") from None


def user_path(path: str | Path) -> Path:
    """A path as a user gave it, with `~` for the home folder, which a shell does not put into `--workdir=~/runs`.

    Raises:
      InputError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot find the folder {path}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The value that `text` says.

    Raises:
      ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
      InputError: it is missing or damaged.
    """
    with reading(path):
        text = path.read_bytes()
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it is no JSON object")
    return found


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line, without a last one that a kill cut short.

    Raises:
      InputError: it is missing or damaged.
    """
    with reading(path):
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse_json(line))
        except ValueError:
            found.append(None)
        if not isinstance(found[-1], dict):
            raise InputError(f"{path}, line {number} is damaged: mend or delete that line")
    return found


def cache_folder(*below: str) -> Path:
    """A folder under `$LLM_JAX_CACHE`, or the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`); made if absent.

    Raises:
      InputError: it cannot be made.
    """
    root = os.environ.get("LLM_JAX_CACHE")
    try:
        base = user_path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_jax"
        folder = base.joinpath(*below)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError: there is no home
        reason = f"cannot make the cache folder: {error}"
        raise InputError(f"{reason}: set LLM_JAX_CACHE to a folder that can be written") from None
    return folder


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside `path` and renames, so that a reader or a crash never sees half a file."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes away
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_to_others(path: Path) -> None:
    """Gives a file that was written for its owner alone the permissions that the user's umask asks for."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.chmod(path, stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink()


def delete(path: Path) -> None:
    """Deletes a folder with all that is in it, or a file. Of a symbolic link the link alone: the rest is not ours.

    Raises:
      OSError: something in it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unused(path: Path) -> Path:
    """`path`, or with a number behind it where an entry already begins with that name."""
    taken = [there.name for there in path.parent.glob("*")]
    names = itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2)))
    return next(path.with_name(name) for name in names if not any(there.startswith(name) for there in taken))


def digest(*parts: str | bytes) -> str:
    """A hash of the parts in order, as 64 hexadecimal digits; the boundaries between parts count."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()
