"""What a reward is called with: texts in their order, and by name what else it asks for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from llm_jax.core.tables import InputError, nearest
from llm_jax.data.answers import known_answer
from llm_jax.data.documents import Document

TAKEN = ("prompts", "completions", "examples")
TOLD = ("completion_lengths", "completion_ended")  # what is known of completions besides their texts
IN_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def check_order(signature: Signature, called: str) -> None:
    """Nothing, if a function may take texts as a reward does.

    Raises:
      InputError: it takes fewer, or names them in another order.
    """
    kinds = signature.parameters
    names = [name for name, parameter in kinds.items() if parameter.kind in IN_PLACE]
    misplaced = any(name in TAKEN and TAKEN.index(name) != i for i, name in enumerate(names))
    too_few = len(names) < len(TAKEN) and not any(p.kind is Parameter.VAR_POSITIONAL for p in kinds.values())
    if misplaced or too_few:
        raise InputError(
            f"the reward {called} takes ({', '.join(kinds)}): let it take ({', '.join(TAKEN)}) in this order, and then "
            "by name what else it asks for"
        )


def asked_for(
    signature: Signature, called: str, examples: Sequence[Document], told: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, list[Any]]:
    """What a reward takes by name: a value for each of `examples`, of `told` or of their columns.

    Raises:
      InputError: it asks for what is not told, and what an example has no column for and the reward no default.
    """
    told, columns = told or {}, [_columns_of(example) for example in examples]
    parameters = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_POSITIONAL]
    named = parameters[sum(p.kind in IN_PLACE for p in parameters[: len(TAKEN)]) :]
    found: dict[str, list[Any]] = {}
    for parameter in named:
        name, default = parameter.name, parameter.default
        if parameter.kind is Parameter.VAR_KEYWORD:
            shared = set.intersection(*map(set, columns)) if columns else set()
            others = {*told, *shared} - {*TAKEN, *found}
            found |= {other: _values(other, told, columns, default) for other in sorted(others)}
            continue
        without = sum(name not in each for each in columns) if name not in told else 0
        if without and default is Parameter.empty:
            known = {*TOLD, *(n for each in columns for n in each)}
            raise InputError(
                f"the reward {called} asks for {name!r}, which {without} of {len(columns)} prompts have not (if that "
                f"is fine, give it a default): {nearest(name, known - {name})}"
            )
        found[name] = _values(name, told, columns, default)
    return found


def _values(
    name: str, told: Mapping[str, Sequence[Any]], columns: Sequence[Mapping[str, Any]], default: Any
) -> list[Any]:
    """Copies, since a reward may change what it is given."""
    return copy.deepcopy(list(told[name]) if name in told else [each.get(name, default) for each in columns])


def _columns_of(example: Document) -> Mapping[str, Any]:
    """The other fields of its record, and the answer that is known, whatever it is called there."""
    columns: Mapping[str, Any] = getattr(example, "columns", {})  # a user's own kind of document may have none
    answer = None if "answer" in columns else known_answer(example)
    return columns if answer is None else {**columns, "answer": answer}
