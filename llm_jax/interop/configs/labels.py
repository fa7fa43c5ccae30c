"""What the scores of a classifier mean, as a config.json says it: its `problem_type`, and the names of its classes."""

from __future__ import annotations

from typing import Any, get_args

from llm_jax.core.errors import InputError, nearest
from llm_jax.interop.family import Config
from llm_jax.objectives.classification import usual_problem
from llm_jax.objectives.objective import ProblemType

IDENTITY = "torch.nn.modules.linear.Identity"  # what sentence-transformers does to a score that stays as it is


def classes(config: Config) -> int:
    """How many scores a classifier gives: 2 unless config.json lists others."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def labels(config: Config) -> tuple[str, ...] | None:
    """The names of the classes, in the order of the scores; None where they only number the classes ("LABEL_0").

    Raises:
      InputError: config.json gives a class no name, or another number than its place.
    """
    said = config.get("id2label") or {}
    order = {str(number): name for number, name in said.items()}
    if order.keys() != set(map(str, range(len(order)))) or not all(isinstance(name, str) for name in order.values()):
        raise InputError(f"config.json's id2label must have a name for each number from 0 to {len(order) - 1}")
    names = tuple(order[str(number)] for number in range(len(order)))
    return names if names != tuple(map(_unnamed, range(len(names)))) else None


def _unnamed(number: int) -> str:
    return f"LABEL_{number}"


def problem_type(config: Config) -> ProblemType:
    """What scores mean; where config.json does not say, as transformers' pipelines and sentence-transformers have it.

    Raises:
      InputError: it says something unknown.
    """
    known: tuple[ProblemType, ...] = get_args(ProblemType)
    said = config.get("problem_type")
    if said is not None:
        if said not in known:
            raise InputError(f"config.json has problem_type={said!r}: {nearest(str(said), known)}")
        return said
    return (
        "regression"
        if _activation(config).endswith(".Identity") and classes(config) == 1
        else usual_problem(classes(config))
    )


def _activation(config: Config) -> str:
    """What a cross-encoder of sentence-transformers does to its score, new files and old; "" where nothing says it.

    Raises:
      InputError: it is neither nothing nor a sigmoid, where there is one score.
    """
    said = (config.get("sentence_transformers") or {}).get("activation_fn")
    said = str(said or config.get("sbert_ce_default_activation_function") or "")
    if classes(config) == 1 and said and said.rpartition(".")[2] not in ("Identity", "Sigmoid"):
        raise InputError(f"config.json has activation_fn={said}, which is not covered: it may be Identity or Sigmoid")
    return said


def described(count: int, problem: ProblemType | None = None, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """What a config.json says of so many scores; of a meaning that is not known (None), nothing."""
    names = names or tuple(map(_unnamed, range(count)))
    said: dict[str, Any] = dict(
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
    )
    if problem is not None:
        said["problem_type"] = problem
    if problem == "regression" and count == 1:
        said["sentence_transformers"] = dict(activation_fn=IDENTITY)
    return said
