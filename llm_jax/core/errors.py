"""Names that a user types, looked up with an answer that helps when there is no such name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line (what, where, what would do); the exit status is 2."""


LISTED = 40  # names that a message lists at most


def nearest(name: str, names: Iterable[str]) -> str:
    """A phrase that names the nearest of `names`; when none is near all of them, or of very many the five nearest."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if len(names) > LISTED:
        return f"the nearest of {len(names)} are {', '.join(difflib.get_close_matches(name, names, n=5, cutoff=0))}"
    return f"choose from {', '.join(names)}" if names else "there are none"


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """The entry `name` of `table`.

    Raises:
      InputError: there is none; the message says what it was to be and the nearest name.
    """
    if name not in table:
        raise InputError(f"no {what} named {name!r}: {nearest(name, table)}")
    return table[name]
