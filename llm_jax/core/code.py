"""A hash of code, for what is kept between runs: where code decides a result, settings are not enough of a key."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.metadata
import importlib.util
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType

from llm_jax.core.files import digest
from llm_jax.core.parts import ROOT, TRUSTED, trusted

RAN = "__ran__"  # of a module of the user's own: the bytes that were run, whatever its file says by now
STARTED = time.time()  # what is written to a file later is not what runs here
DYNAMIC = frozenset(
    {"importlib", "runpy", "__import__", "exec", "load_module"}
)  # with these a file may run what it does not import


def code_hash(*owners: type | FunctionType) -> str | None:
    """A hash of the code that classes (with their bases) and functions are made of; None where it cannot be told.

    It is of the bytes of their modules, and of the modules of this project that these import, directly or not. A user's
    own module is what `load_module` ran, else its file, with the versions of the installed packages that it imports.
    Files that code reads when it runs are no part of it, nor are the versions of the packages that the project imports.

    It cannot be told where one was made by a function or in a notebook, where a user's file imports another of the
    user's files or imports by name, and where a file of which only the path is known was changed after this process
    began.

    Args:
      owners: the classes and functions that decide a result.
    """
    waiting: set[str] = set()
    for owner in (base for each in owners for base in (each.__mro__ if isinstance(each, type) else (each,))):
        if not _ours(owner.__module__) and _installed(owner.__module__):
            continue
        source = _source(owner.__module__)
        if source is None or owner.__qualname__.partition(".")[0] not in source.defined:
            return None
        waiting.add(owner.__module__)
    known: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        source = _source(name)
        if source is None:
            return None
        known[name] = source.digest
        waiting |= source.imports - known.keys()
    return digest(*(f"{name}={known[name]}" for name in sorted(known)))


@dataclasses.dataclass(frozen=True)
class _Source:
    """What is known of a module from its text.

    Attributes:
      digest: a hash of its bytes and of the versions of what it imports.
      defined: the classes and functions that it defines, but for those made by a function.
      imports: the modules of this project that it imports.
    """

    digest: str
    defined: frozenset[str]
    imports: frozenset[str]


@functools.cache
def _source(module: str) -> _Source | None:
    """None: what the module's code is cannot be told."""
    ours = _ours(module)
    loaded = sys.modules.get(module)
    file = _file(module) if ours else getattr(loaded, "__file__", None)
    try:
        if file is None:
            return None
        content = None if ours else getattr(loaded, RAN, None)
        if content is None:
            if Path(file).stat().st_mtime > STARTED:
                return None
            content = Path(file).read_bytes()
        tree = ast.parse(content)
    except (OSError, SyntaxError, ValueError):
        return None
    names = {name for node in ast.walk(tree) for name in _imported(node, module, file)}
    foreign = sorted({name.partition(".")[0] for name in names if not _ours(name)})
    if not ours and not (all(map(_installed, foreign)) and DYNAMIC.isdisjoint(_mentioned(tree))):
        return None
    versions = [] if ours else _versions(foreign)
    return _Source(
        digest(content, *versions),
        frozenset(_defined(tree.body)),
        frozenset(name for name in names if _ours(name) and _file(name)),
    )


def _ours(module: str) -> bool:
    """Whether a module is this project's, and not one of the user's of that name."""
    top = module.partition(".")[0]
    return top in TRUSTED and (top not in sys.modules or trusted(top, ()))


def _file(module: str) -> Path | None:
    """The file of a module of this project; None: there is none, as where the name is of what a module defines."""
    path = ROOT.joinpath(*module.split("."))
    found = (file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file())
    return next(found, None)


def _imported(node: ast.AST, module: str, file: str | Path) -> Iterator[str]:
    """What a statement may import: of `from a import b` both a and a.b."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=base, names=names, level=level):
            package = module if Path(file).name == "__init__.py" else module.rpartition(".")[0]
            for _ in range(level - 1):
                package = package.rpartition(".")[0]
            origin = ".".join(filter(None, (package if level else "", base)))
            yield origin  # empty, and so not installed, where a user's file imports one beside it
            yield from (f"{origin}.{alias.name}" for alias in names)


def _defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The classes and functions of a module, also those under its `if`, `with` and `try`."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        else:
            yield from _defined(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def _mentioned(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (part for name in _imported(node, "", "") for part in name.split("."))


@functools.cache
def _installed(module: str) -> bool:
    """Whether a module is Python's, or of a package that is installed and not a folder of the user's."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):  # a ValueError: the program itself has no spec
        return False
    if spec is None:
        return False
    if spec.origin in ("built-in", "frozen"):
        return True
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and all(map(_is_installed, places))


def _is_installed(place: str) -> bool:
    path = Path(place)
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(
        sysconfig.get_path("stdlib")
    )


def _versions(packages: Iterable[str]) -> list[str]:
    """Of installed packages by the names they are imported by; Python's own have none."""
    beyond = [package for package in packages if package not in sys.stdlib_module_names]
    distributions = importlib.metadata.packages_distributions() if beyond else {}
    named = sorted({name for package in beyond for name in distributions.get(package, ())})
    return [f"{name}=={importlib.metadata.version(name)}" for name in named]
