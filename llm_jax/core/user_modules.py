"""The files of experiments: the project's own, and those of a user, which are run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from llm_jax.core.code import RAN
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.files import reading, user_path
from llm_jax.core.parts import ROOT, own_package

FOLDER = ROOT / "experiments"


def list_names() -> list[str]:
    """The registered experiments: the files of the folder, and of those in it."""
    found = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py"))
    return sorted(path.as_posix() for path in found if not path.name.startswith("_"))


def description(name: str) -> str:
    """The first line of an experiment file's docstring, without running the file."""
    tree = ast.parse(experiment_path(name).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def experiment_path(name: str) -> Path:
    """The file of a registered experiment, or a user's own file, given by its path.

    Raises:
      InputError: there is none.
    """
    if name.endswith(".py"):
        path = user_path(name)
        with reading(path):
            if not path.is_file():
                raise InputError(f"there is no experiment file {name}")
        return path
    if name not in list_names():
        raise InputError(f"no experiment named {name!r}: {nearest(name, list_names())}")
    return FOLDER / f"{name}.py"


def load_module(path: str | Path, source: bytes | None = None) -> ModuleType:
    """Runs a file, which the user thereby trusts: of the project's experiments, or one of the user's own.

    A file of the user's own is known by its stem, also in manifests. `source` is what to run in place of what is in it
    by now: what another process ran.

    Raises:
      InputError: there is no such file, or another of that name, or with another `source`, was run already.
    """
    with reading(path):
        path = user_path(path).resolve()
        if source is None and not path.is_file():
            raise InputError(f"there is no file {path}")
    if path.is_relative_to(FOLDER):
        own_package("experiments")  # not another package of that name in the current folder
        return importlib.import_module(".".join(["experiments", *path.relative_to(FOLDER).with_suffix("").parts]))
    name = module_name(path)
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            if source is not None and source != getattr(known, RAN):
                raise InputError(f"{path} was run already, as it is now and not as it was then: begin a new process")
            return known
        raise InputError(f"{path}: the name {name!r} is taken by another module, rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    if source is None:
        with reading(path):
            source = path.read_bytes()
    setattr(module, RAN, source)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    _sources[str(path)] = source
    return module


_sources: dict[str, bytes] = {}


def user_sources() -> dict[str, bytes]:
    """By path, the user's own files that were run and are still loaded, as they were when they were run."""
    loaded = {getattr(sys.modules[name], "__file__", None) for name in user_modules()}
    return {path: source for path, source in _sources.items() if path in loaded}


def user_modules() -> tuple[str, ...]:
    """The names of the user's own files that were run so far."""
    return tuple(name for name in sys.modules if name.startswith("user_"))


def module_name(path: str | Path) -> str:
    """What the parts of a user's file are called in a manifest: `user_STEM`."""
    return f"user_{Path(path).stem}"
