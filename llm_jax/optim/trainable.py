"""Which parameters are trained, and what stands in for those that are not."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.adapters import ADAPTER, lengths, magnification, product, summed
from llm_jax.core.dims import Lettered, is_lettered
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import Part, Positive, Range, Size
from llm_jax.core.quantized import Format, is_quantized, plain


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


@dataclasses.dataclass(frozen=True)
class Lora(Tuning):
    """Beside a kernel W lie two thin ones, and x W + alpha / rank x (x `down`) `up` is computed (Hu et al. 2021).

    `down`, to the `rank`, begins uniformly within 1 / sqrt(fan-in), as peft's does, and `up` with zeros: so the first
    step is the base's own. All but the adapters is frozen, and what stands on the trunk that the model is built on: a
    head has learnt nothing yet, so it is trained whole, as by peft. `base` says in how few bits kernels are kept (None:
    as they are): with Nf4() this is QLoRA (Dettmers et al. 2023). Adapters have no dropout.

    Attributes:
      paths: which kernels have adapters; (): those of every Einsum, that is of attention, feed-forward and projections.
      also: which parameters are trained whole beside (heads, norms).
    """

    rank: Size = 8
    alpha: Positive = 16.0
    paths: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    base: Format | None = None

    def split(self, key, boxed, trunks=("",)):
        also, known = matching(boxed, self.also, "tuning.also"), leaves(boxed)
        heads = {path for path in known if not any(path.startswith(f"{t}.") or not t for t in trunks)}
        chosen = self._chosen(known)
        if self.paths and (both := chosen & also):
            raise InputError(f"{min(both)} has an adapter by tuning.paths, and is trained whole by tuning.also")
        whole = also | (heads - chosen if self.paths else heads)
        chosen -= whole
        trained, frozen = {}, {}
        for number, (path, box) in enumerate(sorted(known.items())):
            if path in whole:
                trained[path] = box
                continue
            frozen[path] = kept = self._kept(box)
            if path in chosen:
                beside, constant = self._beside(jax.random.fold_in(key, number), box, kept)
                room = path.removesuffix("kernel")
                trained |= {room + name: value for name, value in beside.items()}
                frozen |= {room + name: value for name, value in constant.items()}
        return tree(trained), tree(frozen)

    def _chosen(self, known: Mapping[str, Lettered]) -> frozenset[str]:
        """The paths of the kernels that get adapters."""
        kernels = {path: box for path, box in known.items() if box.summed is not None}
        if not kernels:
            raise InputError(f"tuning: {type(self).__name__} has no kernel to adapt in this model")
        for pattern in self.paths:
            if others := sorted(set(fnmatch.filter(known, pattern)) - kernels.keys()):
                near = nearest(pattern, list(kernels))
                raise InputError(f"tuning.paths: {others[0]} is no Einsum's kernel, so it has no adapter: {near}")
        return matching(tree(kernels), self.paths, "tuning.paths") if self.paths else frozenset(kernels)

    def _kept(self, box: Lettered) -> Any:
        """A frozen parameter, in `base` if it is a kernel."""
        if self.base is None or box.summed is None:
            return box
        layers = "L" * box.letters.startswith("L")
        stored = self.base.quantize(box.value, len(layers))
        codes, scales = Lettered(stored.codes, f"{layers}Q."), Lettered(stored.scales, f"{layers}Q")
        return dataclasses.replace(stored, codes=codes, scales=scales)

    def _beside(self, key: jax.Array, box: Lettered, kept: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The adapter of a kernel: what is trained, and what is constant. `kept` is the kernel as it is frozen."""
        before, over, produced = _letters(box)
        size = dict(zip(box.letters, box.value.shape, strict=True)) | {"Z": self.rank}
        inward, outward = f"{before}{over}Z", f"{before}Z{produced}"
        bound = math.prod(size[a] for a in over) ** -0.5
        down = jax.random.uniform(key, [size[a] for a in inward], minval=-bound, maxval=bound)
        up = jnp.zeros([size[a] for a in outward])
        return dict(down=Lettered(down, inward, box.active), up=Lettered(up, outward, box.active)), {}

    def join(self, trained, frozen):
        return merge(self._scaled(trained), frozen)

    def _scaled(self, trained: Any) -> Any:
        """With `up` times alpha / rank, so that no layer need know of it."""

        def one(path: str, leaf: jax.Array) -> jax.Array:
            return leaf * jnp.asarray(self.alpha / self.rank, leaf.dtype) if _name(path) == "up" else leaf

        return tree({path: one(path, leaf) for path, leaf in leaves(trained).items()})

    def merged(self, trained, frozen):
        frozen = jax.tree.map(plain, frozen, is_leaf=is_quantized)
        joined, found = (leaves(t) for t in (self.join(trained, frozen), self.original(self.kept(trained), frozen)))
        for room in (path.removesuffix("down") for path in joined if _name(path) == "down"):
            found[room + "kernel"] = self._whole(
                {name: joined.get(room + name) for name in ("kernel", "norm", *ADAPTER)}
            )
        return tree(found)

    def _whole(self, weights: Mapping[str, Any]) -> jax.Array:
        """One kernel in place of a kernel and its adapter."""
        return weights["kernel"] + product(weights["kernel"], weights["down"], weights["up"])

    def kept(self, trained):
        return part(trained, lambda path: _name(path) not in ADAPTER)

    def original(self, kept, frozen):
        return merge(kept, part(frozen, lambda path: _name(path) != "norm"))


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """As `Lora`, but only the direction of a kernel is learnt so; its length is trained by itself (Liu et al. 2024).

    With V for W + alpha / rank x `down` `up`, the kernel is `magnitude` x V / |V|, the length being that of the weights
    that make one number. No gradient flows through it.
    """

    def _beside(self, key, box, kept):
        beside, _ = super()._beside(key, box, kept)
        before, over, produced = _letters(box)
        values = jax.tree.map(plain, nn.meta.unbox(kept), is_leaf=is_quantized)
        norm = Lettered(
            lengths(values, range(len(before), len(before + over))), before + produced, box.active, role="scale"
        )
        return beside | dict(magnitude=norm), dict(norm=norm)

    def _whole(self, weights):
        scale = magnification(**weights)
        axes = summed(weights["kernel"], weights["down"], weights["up"])
        return super()._whole(weights) * jnp.expand_dims(scale, list(axes))


def _letters(box: Lettered) -> tuple[str, str, str]:
    """The letters of a kernel that it has for each layer and expert, that it sums, and that it produces.

    Raises:
      InputError: they are not in this order.
    """
    before = "".join(a for a in box.letters if a in "LE")
    produced = "".join(a for a in box.letters if a not in f"{before}{box.summed}")
    if box.letters != f"{before}{box.summed}{produced}":
        raise InputError(f"a kernel of letters {box.letters} sums {box.summed}: write what it sums first, for adapters")
    return before, box.summed or "", produced


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


TUNINGS = dict(TrainAll=TrainAll, Only=Only, Frozen=Frozen, Lora=Lora, Dora=Dora)
