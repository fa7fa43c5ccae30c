"""Which parameters are trained, and what stands in for those that are not."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax

from llm_jax.core.dims import is_lettered
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import Part, Range


class Tuning(Part):
    """Parts a model's parameters in those trained and those frozen, and joins them again.

    Optimiser, average and checkpoints know the trained ones alone.
    """

    def split(self, key: jax.Array, boxed: Any, trunks: Sequence[str] = ("",)) -> tuple[Any, Any]:
        """The trained and the frozen parameters, each with its letters, from the whole model's.

        Args:
          trunks: where in the model those of the model that it is built on are (`Model.trunks`).

        Raises:
          InputError: nothing would be trained.
        """
        raise NotImplementedError

    def join(self, trained: Any, frozen: Any) -> Any:
        """What the model computes with."""
        return merge(trained, frozen)

    def merged(self, trained: Any, frozen: Any) -> Any:
        """The parameters of the plain model, to be evaluated, exported, trained on from."""
        return merge(trained, frozen)

    def kept(self, trained: Any) -> Any:
        """What must be remembered of the beginning, so that `original` has it."""
        return trained

    def original(self, kept: Any, frozen: Any) -> Any:
        """The whole parameters that training began with."""
        return merge(kept, frozen)


@dataclasses.dataclass(frozen=True)
class TrainAll(Tuning):
    """All parameters are trained."""

    def split(self, key, boxed, trunks=("",)):
        return boxed, {}


@dataclasses.dataclass(frozen=True)
class Only(Tuning):
    """Parameters whose path fits one of `paths` are trained: `("head.*", "*.norm.scale")`; * is any text."""

    paths: Annotated[tuple[str, ...], Range(least=1)]

    def split(self, key, boxed, trunks=("",)):
        chosen = matching(boxed, self.paths, "tuning.paths")
        return part(boxed, chosen.__contains__), part(boxed, lambda path: path not in chosen)


@dataclasses.dataclass(frozen=True)
class Frozen(Tuning):
    """Parameters whose path fits one of `paths` stay as they are, and all others are trained."""

    paths: Annotated[tuple[str, ...], Range(least=1)]

    def split(self, key, boxed, trunks=("",)):
        kept = matching(boxed, self.paths, "tuning.paths")
        if kept == leaves(boxed).keys():
            raise InputError(f"tuning.paths={self.paths!r} are all parameters: nothing would be trained")
        return part(boxed, lambda path: path not in kept), part(boxed, kept.__contains__)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def matching(boxed: Any, patterns: Iterable[str], where: str) -> frozenset[str]:
    """The paths of parameters that fit one of `patterns`.

    Raises:
      InputError: a pattern fits none.
    """
    paths = list(leaves(boxed))
    found = set()
    for pattern in patterns:
        fitting = fnmatch.filter(paths, pattern)
        if not fitting:
            raise InputError(f"{where}: no parameter is called {pattern!r}: {nearest(pattern, paths)}")
        found.update(fitting)
    return frozenset(found)


def leaves(tree: Any) -> dict[str, Any]:
    """Every parameter by its path: "stack.layers.block_0.attention.query.kernel"."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_lettered)
    return {".".join(key.key for key in path): leaf for path, leaf in found}


def tree(leaves: Mapping[str, Any]) -> Any:
    """The tree of which `leaves` tells."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *rooms, name = path.split(".")
        inside = made
        for room in rooms:
            inside = inside.setdefault(room, {})
        inside[name] = leaf
    return made


def part(tree: Any, wanted: Callable[[str], bool], path: str = "") -> Any:
    """The tree with only the parameters whose path is `wanted`."""
    found = {}
    for name, below in tree.items():
        at = f"{path}.{name}" if path else name
        if isinstance(below, Mapping):
            if inside := part(below, wanted, at):
                found[name] = inside
        elif wanted(at):
            found[name] = below
    return found


def merge(one: Any, other: Any) -> Any:
    """The tree with all parameters of both, which have none in common."""
    return {
        name: merge(one[name], other[name]) if name in one and name in other else one.get(name, other.get(name))
        for name in sorted(one.keys() | other.keys())
    }


TUNINGS = dict(TrainAll=TrainAll, Only=Only, Frozen=Frozen)
