"""What a user's own function gave back, where it is not what its caller can go on with."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError

SHOWN = 60  # characters of a value that a message shows


def unusable(function: str, value: Any, wanted: str) -> InputError:
    """The error to raise: `function` returned `value`, `wanted` says what it has to return."""
    text = " ".join(repr(value).split())
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return InputError(f"{function} returned {shown} ({type(value).__name__}): it must return {wanted}")
