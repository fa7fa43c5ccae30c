"""What a reward is, and what it is called with: texts in their order, and by name what else it asks for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import Part
from llm_jax.core.returned import unusable
from llm_jax.data.answers import known_answer
from llm_jax.data.documents import Document, Rendering
from llm_jax.text.tokenizer import Tokenizer

TAKEN = ("prompts", "completions", "examples")
TOLD = ("completion_lengths", "completion_ended")  # what is known of completions besides their texts
IN_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Reward(Part):
    """`reward(prompts, completions, examples) -> scores`. An experiment may make its own: subclass, and score.

    After these three it may take more, by name, a list with a value for each completion: `completion_lengths` (in
    tokens, with the one that ended it), `completion_ended` (whether one did), and whatever the records of the prompts
    have in a field of that name, `answer` among them. Where a record has no such field the value is the parameter's
    default. With `**columns` it takes every field that all of these records have.
    """

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], examples: Sequence[Document]) -> np.ndarray:
        """float64 [N]: a score for each completion, the higher the better.

        Args:
          prompts: what was to be gone on from.
          completions: what was written, without the token that ends it.
          examples: the document that each prompt is of, with what else is known of it. Its texts are as the data has
            them: templates trim replies, and some tokenizers put spaces between words (`ExactAnswer` allows for both).
        """
        raise NotImplementedError

    def called(self) -> str:
        """What its scores are called in what is logged."""
        return type(self).__name__

    def signature(self) -> inspect.Signature:
        """Of what is called: after the first three parameters come those that are asked for by name."""
        return inspect.signature(self.__call__)

    def check(self) -> None:
        """Checks that it can be asked.

        Raises:
          InputError: it cannot.
        """

    def check_prompts(self, documents: Sequence[Document]) -> None:
        """Checks that it can be asked about completions of these.

        Raises:
          InputError: it asks for what one of them has not.
        """
        asked_for(self.signature(), self.called(), documents, {name: [] for name in TOLD})

    def check_room(self, longest: Document, tokens: int, tokenizer: Tokenizer, rendering: Rendering) -> None:
        """Checks that it can read completions of every prompt.

        Args:
          longest: the document of the longest prompt.
          tokens: how many that prompt has with the longest completion there may be.

        Raises:
          InputError: it cannot.
        """

    def ready(self, tokenizer: Tokenizer, rendering: Rendering, frozen: Any) -> Reward:
        """The reward as a training asks it: one that reads texts as a model does is given what that needs."""
        return self


def scores(
    reward: Reward, prompts: Sequence[str], completions: Sequence[str], examples: Sequence[Document],
    told: Mapping[str, Sequence[Any]] | None = None,
) -> np.ndarray:  # fmt: skip
    """float64 [N]: what `reward` gives to each completion. It is asked with lists of its own, which it may change.

    Args:
      told: what is known of completions, by the names of `TOLD`.

    Raises:
      InputError: it does not return a finite number for each, or asks for what there is not.
    """
    more = asked_for(reward.signature(), reward.called(), examples, told)
    given: Any = reward(list(prompts), list(completions), list(examples), **more)
    name, wanted = f"the reward {reward.called()}", f"a list or an array of {len(completions)} finite numbers"
    if isinstance(given, str | bytes | dict | set) or not (isinstance(given, Sequence) or hasattr(given, "__array__")):
        raise unusable(name, given, wanted)
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # lists of several lengths; a tensor on a device or with a gradient
        raise unusable(name, given, wanted) from None
    real = any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
    if not real or found.shape != (len(completions),) or not np.isfinite(score_N := found.astype(np.float64)).all():
        raise unusable(name, given, wanted)
    return score_N


def check_order(signature: Signature, called: str) -> None:
    """Checks that a function takes texts as a reward does.

    Raises:
      InputError: it takes fewer, or has them in another order.
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
