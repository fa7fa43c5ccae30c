"""Parts: what experiments are made of. A part is a frozen dataclass, or a linen module (a dataclass too).

An experiment is a tree of parts. This file walks such trees, checks their settings and replaces one by its path;
`serialization.py` reads and writes them. Neither knows what the parts do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import flax.linen as nn
import numpy as np

from llm_jax.core.errors import InputError, nearest

TRUSTED = ("llm_jax", "experiments")  # packages whose parts a manifest may name without being told
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds them
TABLE = re.compile(r"^[A-Z_]+ = dict\(\s*([A-Z]\w*)=\1\b", re.MULTILINE)  # what a family's file ends with


class Part:
    """A setting and its behaviour in one: subclasses are frozen dataclasses. A *family* is a direct subclass."""


def is_part(value: object) -> TypeGuard[Part | nn.Module]:
    return isinstance(value, (Part, nn.Module)) and dataclasses.is_dataclass(value)


def settings(part: type | object) -> list[str]:
    """The names of a part's fields that are settings, in the order of its constructor."""
    cls: Any = part if isinstance(part, type) else type(part)
    linen = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name not in linen]


def family(cls: type) -> type:
    """The base class that `cls` and its rivals share: the last of its bases that is still ours."""
    ours = [base for base in cls.__mro__ if issubclass(base, (Part, nn.Module)) and base not in (Part, nn.Module)]
    return [base for base in ours if not base.__module__.startswith("flax.")][-1]


def descendants(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def catalogue(modules: tuple[str, ...] = ()) -> dict[str, type]:
    """Every part that can be named now: those of the project, then those of the user's own modules."""
    known = [c for root in (Part, nn.Module) for c in descendants(root) if dataclasses.is_dataclass(c)]
    public = [c for c in known if trusted(c.__module__, modules) and not c.__name__.startswith("_")]
    return {c.__name__: c for c in sorted(public, key=lambda c: trusted(c.__module__, ()), reverse=True)}


@functools.cache
def load_tables() -> None:
    """Imports each of the project's files that has a table of parts, so that all of these can be named."""
    for path in sorted((ROOT / "llm_jax").rglob("*.py")):
        if TABLE.search(path.read_text(encoding="utf-8")):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def trusted(module: str, modules: tuple[str, ...]) -> bool:
    """Whether a manifest may name the parts of `module`: it is of the project, or one of the user's own `modules`."""
    if module in modules:
        return True
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    return package in TRUSTED and file is not None and _within(file, package)


@functools.cache
def _within(file: str, package: str) -> bool:
    return Path(file).resolve().is_relative_to(ROOT / package)


def own_package(name: str) -> None:
    """Makes `import name` mean this project's package, also where the current folder has one of that name.

    Raises:
      InputError: another package of that name is imported already.
    """
    if known := sys.modules.get(name):
        if (file := getattr(known, "__file__", None)) is None or not _within(file, name):
            raise InputError(f"the name {name!r} is taken by {file or 'another package'}: rename that")
        return
    file, below = ROOT / name / "__init__.py", [str(ROOT / name)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=below)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


# ------------------------------------------------------------------------------------------------------------- types


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number, or the length of a tuple, may be: the second argument of `Annotated`. `Range()`: any finite one.

    A float must be in the range as it is computed with, in 32 bits: 0.999999999 is 1 there, and 1e-50 is 0.
    """

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def __contains__(self, value: Any) -> bool:
        return self.holds(len(value) if isinstance(value, tuple) else computed(value))

    def holds(self, size: int | float) -> bool:
        return math.isfinite(size) and self.least <= size <= self.most and self.above < size < self.below

    def __str__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "below": self.below, "at most": self.most}
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if abs(bound) < MOST)


def computed(value: int | float) -> int | float:
    """`value` as a device computes with it: a float in 32 bits, of which the smallest are 0."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    greatest, smallest = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
    if abs(value) > greatest:
        return math.copysign(math.inf, value)
    return 0.0 if abs(value) < smallest else float(np.float32(value))


MOST = 2**31 - 1  # of whole numbers that a device counts with

Size = Annotated[int, Range(least=1, most=MOST)]
Count = Annotated[int, Range(least=0, most=MOST)]
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
Number = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
Rate = Annotated[float, Range(least=0, below=1)]  # of dropout; how much an average keeps of what it was


@functools.cache
def types_of(cls: type) -> Mapping[str, Any]:
    """The declared type of each setting of a part."""
    found = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        for name, declared in vars(base).get("__annotations__", {}).items():
            if name in settings(cls):
                found[name] = eval(declared, dict(scope)) if isinstance(declared, str) else declared
    return found


SHOWN = 200  # characters of a value that a message shows


def conform(value: Any, declared: Any, where: str) -> Any:
    """`value` as `declared`: a list becomes the tuple and a whole number the float that the type asks for.

    Raises:
      InputError: it is of another type; the message names `where`, the type, and the value.
    """
    shown = show(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    refuse = InputError(f"{where} must be {describe(declared)}, not {shown}")
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if declared in (Any, object):
        return value
    if origin is Annotated:
        value = conform(value, arguments[0], where)
        if value not in arguments[1]:
            if type(value) is int and value > arguments[1].most:
                raise InputError(f"{where} must be at most {arguments[1].most:,}, not {value}")
            if type(value) is float and arguments[1].holds(value):
                raise InputError(f"{refuse}, which is {computed(value)} in 32 bits")
            raise refuse
        return value
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            try:
                return conform(value, choice, where)
            except InputError:
                continue
        raise refuse
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise InputError(f"{refuse}: {nearest(str(value), map(str, arguments))}")
    if origin is tuple or declared is tuple:
        if not isinstance(value, (tuple, list)):
            raise refuse
        each = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        if arguments and len(each) != len(value):
            raise refuse
        each = each or (Any,) * len(value)
        return tuple(conform(v, t, f"{where}.{i}") for i, (v, t) in enumerate(zip(value, each, strict=True)))
    if declared is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise refuse
        return float(value)
    if type(value) is float and declared is float and not math.isfinite(value):
        raise InputError(f"{where} must be a finite number, not {value}")  # JSON, and so a manifest, has no others
    if declared in (int, float, str, bool):
        if type(value) is not declared:
            raise refuse
        return value
    if declared is None or declared is type(None):
        if value is not None:
            raise refuse
        return None
    if isinstance(origin or declared, type) and isinstance(value, origin or declared) and not is_base(type(value)):
        return value
    raise refuse


@functools.cache
def is_base(cls: type) -> bool:
    """Whether the class only says what its family can do: the table at the end of its file lists others of it alone."""
    if not issubclass(cls, (Part, nn.Module)):
        return False
    module = sys.modules.get(cls.__module__)
    tables = [value for value in vars(module).values() if isinstance(value, dict)] if module else []
    listed = [c for table in tables for c in table.values() if isinstance(c, type) and issubclass(c, cls)]
    return bool(listed) and cls not in listed


def describe(declared: Any) -> str:
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        length = "with length " if typing.get_origin(arguments[0]) is tuple else ""
        return f"{describe(arguments[0])} {length}{arguments[1]}".rstrip()
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin is tuple:
        return f"a tuple of {describe(arguments[0])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    if declared in words:
        return words[declared]
    if isinstance(declared, type) and issubclass(declared, (Part, nn.Module)):
        names = sorted(n for n, c in catalogue().items() if issubclass(c, declared) and c is not declared)
        article = "an" if declared.__name__[0] in "AEIOU" else "a"
        return f"{article} {declared.__name__}" + (f" ({', '.join(names)})" if names and len(names) < 20 else "")
    return getattr(declared, "__name__", str(declared))


def show(value: Any, whole: bool = False) -> str:
    """`value`, or its JSON in a manifest, as a user would type it; the settings of a part only if `whole`."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(show(v, whole) for v in value)}{',' * (len(value) == 1)})"
    if is_part(value):
        name, inside = type(value).__name__, {n: getattr(value, n) for n in settings(value)}
    elif isinstance(value, dict):
        name, inside = str(value.get("part")).rpartition(":")[2], {n: v for n, v in value.items() if n != "part"}
    else:
        return repr(value)
    said = ", ".join(f"{n}={show(v, whole)}" for n, v in inside.items()) if whole else "..." * bool(inside)
    return f"{name}({said})"


def check(part: Any, where: str = "") -> Any:
    """`part` with every setting below it checked against its declared type.

    Raises:
      InputError: a setting has the wrong type.
    """
    if isinstance(part, tuple):
        return tuple(check(p, f"{where}.{i}") for i, p in enumerate(part))
    if not is_part(part):
        return part
    here = {}
    for name in settings(part):
        at = f"{where}.{name}" if where else name
        here[name] = conform(check(getattr(part, name), at), types_of(type(part))[name], at)
    changed = {n: v for n, v in here.items() if v is not getattr(part, n)}
    return replace(part, **changed) if changed else part


# -------------------------------------------------------------------------------------------------------------- paths


def replace(part: Any, **changes: Any) -> Any:
    return part.clone(**changes) if isinstance(part, nn.Module) else dataclasses.replace(part, **changes)


def override(part: Any, path: str, value: Any, where: str = "") -> Any:
    """`part` with the setting at `path` (`"model.stack.pattern.0.attention"`) replaced by `value`.

    A part may only be replaced by one of its own family, and a literal by one of the declared type.

    Raises:
      InputError: there is no such path (the nearest name is given), or the value is of the wrong type.
    """
    name, _, rest = path.partition(".")
    at = f"{where}.{name}" if where else name
    if isinstance(part, tuple):
        if not name.isdecimal() or int(name) >= len(part):
            places = f"0 to {len(part) - 1}" if part else "none"
            raise InputError(f"{at!r} is no place in {where!r}, which has {places}")
        declared: Any = family(type(part[int(name)])) if is_part(part[int(name)]) else Any
        new = _replacement(part[int(name)], declared, rest, value, at)
        return part[: int(name)] + (new,) + part[int(name) + 1 :]
    if not is_part(part):
        raise InputError(f"{where!r} is {part!r}, which has no {name!r} inside")
    if name not in settings(part):
        owner = f"{type(part).__name__}" + (f" at {where!r}" if where else "")
        raise InputError(f"no setting {at!r} ({owner}): {nearest(name, settings(part))}")
    new = _replacement(getattr(part, name), types_of(type(part))[name], rest, value, at)
    return replace(part, **{name: new})


def _replacement(old: Any, declared: Any, rest: str, value: Any, at: str) -> Any:
    if rest:
        return conform(override(old, rest, value, at), declared, at)
    value = conform(value, declared, at)
    if is_part(old) and is_part(value) and declared in (Part, nn.Module):
        conform(value, family(type(old)), at)
    return value


def walk(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of the tree with its path, parents first."""
    if is_part(part):
        yield path, part
        children: list[tuple[str, Any]] = [(n, getattr(part, n)) for n in settings(part)]
    elif isinstance(part, tuple):
        children = [(str(i), p) for i, p in enumerate(part)]
    else:
        return
    for name, child in children:
        yield from walk(child, f"{path}.{name}" if path else name)


def transform(part: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with `change` applied to every part, children first."""
    if isinstance(part, tuple):
        return tuple(transform(p, change) for p in part)
    if not is_part(part):
        return part
    here = {n: transform(getattr(part, n), change) for n in settings(part)}
    changed = {n: v for n, v in here.items() if v is not getattr(part, n)}
    return change(replace(part, **changed) if changed else part)
