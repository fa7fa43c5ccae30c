"""Parts as text: what a user typed on the command line, and the manifest that is kept with a run."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from llm_jax.core.errors import InputError, lookup, nearest
from llm_jax.core.parts import (
    TRUSTED,
    Part,
    catalogue,
    conform,
    is_part,
    load_tables,
    own_package,
    settings,
    trusted,
    types_of,
)

Json = dict[str, Any] | list[Any] | str | int | float | bool | None

# ------------------------------------------------------------------------------------------------- what a user typed


def parse(text: str, modules: tuple[str, ...] = ()) -> Any:
    """The value of a literal, or of a call of a part's name: `"12"`, `"(1, 2)"`, `"Alibi()"`, `"Rope(theta=5e5)"`.

    Nothing else is evaluated. A single word that names no part is taken as text, and so is a path ("runs/a").

    Raises:
      InputError: the text is neither; the message shows it, with the nearest name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return text
    except (RecursionError, MemoryError):  # brackets in thousands of brackets
        raise InputError(f"{text[:40]!r}... is nested too deeply") from None
    if isinstance(tree, ast.BinOp | ast.Attribute) and "/" in text and not set(text) & set("()[]'\""):
        return text
    if _called(tree) - catalogue(modules).keys():
        load_tables()  # what the experiment itself does not use is not imported yet
    return _value(tree, catalogue(modules), text)


def _called(tree: ast.expr) -> set[str]:
    return {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def _value(node: ast.expr, names: Mapping[str, type], text: str) -> Any:
    inner = functools.partial(_value, names=names, text=text)
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(inner(e) for e in elements)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            part = lookup(names, name, "part")
            named = {k.arg or "": inner(k.value) for k in keywords}
            if len(named) < len(keywords):
                raise InputError(f"cannot read {text!r}: a setting of {name} is given twice")
            return build(part, [inner(a) for a in arguments], named, name)
        case ast.Name(id=name):
            if name in names:
                raise InputError(f"{name!r} is a part: write {name}(...)")
            return name
    raise InputError(f"cannot read {text!r}: write a literal such as 12, or a part such as Rope(theta=5e5)")


def build(part: type, arguments: list[Any], named: dict[str, Any], where: str) -> Any:
    """`part(*arguments, **named)` with names and types checked first.

    Raises:
      InputError: a name is unknown, one is missing, or a value is of the wrong type.
    """
    known = settings(part)
    if len(arguments) > len(known):
        raise InputError(f"{where} takes at most {len(known)} settings ({', '.join(known)}), not {len(arguments)}")
    if twice := [name for name in known[: len(arguments)] if name in named]:
        raise InputError(f"{where} is given {', '.join(twice)} twice")
    given = dict(zip(known, arguments, strict=False)) | named
    for name in given:
        if name not in known:
            raise InputError(f"{where} has no setting {name!r}: {nearest(name, known)}")
    required = [
        f.name
        for f in dataclasses.fields(part)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name in known
    ]
    if missing := [name for name in required if name not in given]:
        raise InputError(f"{where} needs {', '.join(missing)}")
    return part(**{n: conform(v, types_of(part)[n], f"{where}.{n}") for n, v in given.items()})


# ----------------------------------------------------------------------------------------------------------- manifest


def to_json(value: Any) -> Json:
    """The tree as JSON: a part is `{"part": "module:Class", setting: value, ...}`, a tuple is a list."""
    if is_part(value):
        cls = type(value)
        name = f"{cls.__module__}:{cls.__qualname__}"
        return {"part": name} | {n: to_json(getattr(value, n)) for n in settings(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise InputError(f"{value!r} cannot be kept in a manifest: make it a part or a literal")


def from_json(json: Json, modules: tuple[str, ...] = (), where: str = "manifest") -> Any:
    """The tree that `to_json` wrote.

    It may name only parts, of this project or of `modules` that the user passed: nothing else is imported or called.

    Raises:
      InputError: it names something else, or a setting is unknown, missing or of the wrong type.
    """
    if isinstance(json, list):
        return tuple(from_json(v, modules, f"{where}.{i}") for i, v in enumerate(json))
    if not isinstance(json, dict):
        return json
    part = _named(json.get("part"), modules, where)
    given = {n: from_json(v, modules, f"{where}.{n}") for n, v in json.items() if n != "part"}
    return build(part, [], given, where)


def resolve(name: Any, modules: tuple[str, ...], where: str) -> Any:
    """What the module of "module:name" has under that name; None if it has nothing.

    Raises:
      InputError: the module is neither of this project nor one of the user's `modules`, or there is none.
    """
    module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    package = module.partition(".")[0]
    ours = package in TRUSTED and module not in modules
    if ours:
        own_package(package)
    if not attribute or not (ours or module in modules):
        raise InputError(
            f"{where} names {name!r}, which is no part of this project: "
            "pass the file that defines it with --modules, if you trust it"
        )
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError):  # a ValueError: a name that no file can have
        if ours:
            load_tables()
            if (moved := catalogue().get(attribute)) is not None:
                raise InputError(
                    f"{where} names {name!r}, which is {moved.__module__}:{attribute} now: a run of an older version "
                    "cannot be opened; use that version, or train again"
                ) from None
        raise InputError(f"{where} names {name!r}, but there is no module {module!r} here") from None


def _named(name: Any, modules: tuple[str, ...], where: str) -> type:
    found, module = resolve(name, modules, where), str(name).partition(":")[0]
    is_type = isinstance(found, type) and issubclass(found, (Part, nn.Module)) and dataclasses.is_dataclass(found)
    if not is_type or found.__module__ != module or not trusted(module, modules):
        raise InputError(f"{where} names {name!r}, which is not a part")
    return found
