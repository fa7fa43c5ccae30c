"""What the scores of a classifier mean, as a config.json says it: its `problem_type`, and the names of its classes."""

from __future__ import annotations

from typing import Any, get_args

from llm_jax.core.tables import InputError, nearest
from llm_jax.interop.family import Config
from llm_jax.objectives.classification import usual_problem
from llm_jax.objectives.objective import ProblemType

IDENTITY = "torch.nn.modules.linear.Identity"  # what sentence-transformers does to a score that stays as it is


def classes(config: Config) -> int:
    """How many scores a classifier gives: 2 unless config.json lists others."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def problem_type(config: Config) -> ProblemType:
    """What they mean; where config.json does not say, as transformers' pipelines and sentence-transformers have it.

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


def described(count: int, problem: ProblemType | None) -> dict[str, Any]:
    """What a config.json says of so many scores that mean this; None: what they mean is not known."""
    names = {str(i): f"LABEL_{i}" for i in range(count)}
    said: dict[str, Any] = dict(id2label=names, label2id={name: int(i) for i, name in names.items()})
    if problem is not None:
        said["problem_type"] = problem
    if problem == "regression" and count == 1:
        said["sentence_transformers"] = dict(activation_fn=IDENTITY)
    return said
