"""Name maps: which tensor of a published checkpoint is which parameter of ours, and how its axes lie.

A map goes from the path of a parameter of ours to a `Theirs`. Letters say the rest: `Theirs("q_proj.weight", "KGH D")`
is a matrix whose rows are our K, G and H together and whose columns are our D, whatever order ours are in. So one map
serves both directions, and a transposition is never written twice.

Blocks of a stack share a key, `block.attention.query.kernel`; `{layer}` in their name counts the layers, over repeats
and blocks, and `{expert}` the experts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import jax
import numpy as np

from llm_jax.core.dims import Lettered, is_lettered
from llm_jax.core.errors import InputError
from llm_jax.core.finite import is_finite

BLOCK = re.compile(r"\bstack\.layers\.block_(\d+)\.")
LISTED = 5  # names that a message shows


@dataclasses.dataclass(frozen=True)
class Theirs:
    """A tensor of the checkpoint, or a piece of one.

    Attributes:
      name: with `{layer}` and `{expert}` where there is one for each.
      axes: the letters that each of its axes holds, outermost first, with a space between axes: "KGH D". A 1 is an
        axis of that size that ours lacks.
      fused: the letters of all the pieces that lie behind each other along the axis of this one (GPT-2's query, key and
        value), and `piece`, which of them this is.
    """

    name: str
    axes: str
    fused: tuple[str, ...] = ()
    piece: int = 0

    @property
    def letters(self) -> str:
        """All that its axes hold, in order."""
        return self.axes.replace(" ", "").replace("1", "")

    @property
    def axis(self) -> int:
        """Along which the pieces lie."""
        return self.axes.split().index(self.fused[self.piece])


Names = Mapping[str, Theirs]


class Tensors(Protocol):
    """The tensors of a checkpoint, read one at a time."""

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Renamed:
    """The tensors of a checkpoint under other names: `written` has for each of these the one in the checkpoint."""

    inner: Tensors
    written: Mapping[str, str]

    def names(self) -> Sequence[str]:
        return list(self.written)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(self.written[name])

    def read(self, name: str) -> np.ndarray:
        return self.inner.read(self.written[name])


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter of ours is found: its letters without L and E, and the layer and the expert of each part."""

    theirs: Theirs
    letters: str  # ours, of one layer and one expert
    sizes: dict[str, int]  # of every letter of the model's parameter
    layers: tuple[int, ...] | None  # the number of each repeat's layer, where there is an L

    def name(self, layer: int | None, expert: int | None) -> str:
        return self.theirs.name.format(layer=layer, expert=expert)

    def shape(self, fused: Mapping[str, int]) -> tuple[int, ...]:
        """Of their whole tensor; `fused` has the sizes of all pieces by their letters."""
        sizes = self._rows()
        if self.theirs.fused:
            sizes[self.theirs.axis] = sum(fused[f] for f in self.theirs.fused)
        return tuple(sizes)

    def _rows(self) -> list[int]:
        """The shape of their tensor (or piece)."""
        return [prod(self.sizes[a] for a in group if a != "1") for group in self.theirs.axes.split()]

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Their tensor (or piece) with our axes."""
        written = self.theirs.letters
        apart = tensor.reshape([self.sizes[a] for a in written])
        return apart.transpose([written.index(a) for a in self.letters])

    def theirs_of(self, ours: np.ndarray) -> np.ndarray:
        """Our array with their axes."""
        return ours.transpose([self.letters.index(a) for a in self.theirs.letters]).reshape(self._rows())


def places(boxed: Any, names: Names) -> dict[str, Place]:
    """For the path of each parameter of ours, its place in the checkpoint.

    Raises:
      InputError: the map says nothing of a parameter.
    """
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_lettered)
    paths = {".".join(key.key for key in path): leaf for path, leaf in leaves}
    blocks = {path: 1 + max(int(m[1]) for p in paths if (m := BLOCK.search(p)) and _stack(p) == _stack(path))
              for path in paths if BLOCK.search(path)}  # fmt: skip
    found, unknown = {}, []
    for path, leaf in paths.items():
        match = BLOCK.search(path)
        key = BLOCK.sub("block.", path)
        if key not in names:
            unknown.append(path)
            continue
        sizes = dict(zip(leaf.letters, leaf.value.shape, strict=True))
        layers = None
        if match:
            layers = tuple(int(match[1]) + blocks[path] * repeat for repeat in range(sizes["L"]))
        theirs = names[key]
        letters = leaf.letters.replace("L", "").replace("E", "" if "{expert}" in theirs.name else "E")
        if sorted(letters) != sorted(theirs.letters):
            raise InputError(f"{theirs.name} has axes {theirs.axes}, but our {path} has {letters}")
        found[path] = Place(theirs, letters, sizes, layers)
    if unknown:
        raise InputError(f"the checkpoint's family has no tensor for {listed(unknown)}")
    return found


def _stack(path: str) -> str:
    return path[: path.index("stack.layers.")]


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def wanted(places_: Mapping[str, Place]) -> Iterator[tuple[str, Place]]:
    """Every tensor of theirs that a map uses, by name, with the place of (a piece of) it."""
    for place in places_.values():
        experts = range(place.sizes["E"]) if "{expert}" in place.theirs.name else [None]
        for layer in place.layers or [None]:
            for expert in experts:
                yield place.name(layer, expert), place


def check(places_: Mapping[str, Place], tensors: Tensors, ignored: Sequence[str] = ()) -> None:
    """Nothing, if the checkpoint has every tensor that is wanted, in its shape, and no other (but `ignored` patterns).

    Raises:
      InputError: tensors are missing, left over, or of another shape; the message lists them.
    """
    there, fused = set(tensors.names()), _fused_sizes(places_)
    needed = dict(wanted(places_))
    if missing := sorted(needed.keys() - there):
        raise InputError(f"the checkpoint lacks {len(missing)} tensors: {listed(missing)}")
    left = sorted(name for name in there - needed.keys() if not any(re.fullmatch(p, name) for p in ignored))
    if left:
        raise InputError(f"the checkpoint has {len(left)} tensors that the model has no place for: {listed(left)}")
    for name, place in needed.items():
        shape, expected = tuple(tensors.shape(name)), place.shape(fused.get(name, {}))
        if shape != expected:
            raise InputError(f"{name} has shape {shape}, but the model's settings ask for {expected}")


def check_copies(places_: Mapping[str, Place], names: Names, tensors: Tensors, copies: Mapping[str, str]) -> None:
    """Nothing, if each tensor that is not wanted, since it is a copy of another (`Family.copies`), is one.

    Raises:
      InputError: one is not, so that the model would compute something else.
    """
    there = set(tensors.names())
    for name in sorted(there - dict(wanted(places_)).keys()):
        for pattern, original in copies.items():
            if not (found := re.fullmatch(pattern, name)) or (original := found.expand(original)) not in there:
                continue
            if not np.array_equal(tensors.read(name), tensors.read(original)):
                separate = any(theirs.name == name for theirs in names.values())
                told = "set tie_word_embeddings=false in config.json" if separate else "this model has one for both"
                raise InputError(f"{name} is no copy of {original}, which the settings make it: {told}")


def _fused_sizes(places_: Mapping[str, Place]) -> dict[str, dict[str, int]]:
    """For each fused tensor, the size of each of its pieces by their letters."""
    sizes: dict[str, dict[str, int]] = {}
    for name, place in wanted(places_):
        if place.theirs.fused:
            letters = place.theirs.fused[place.theirs.piece]
            sizes.setdefault(name, {})[letters] = prod(place.sizes[a] for a in letters)
    return sizes


def load(
    boxed: Any, names: Names, tensors: Tensors, shardings: Any, ignored: Sequence[str] = (),
    copies: Mapping[str, str] | None = None, note: Callable[[int], object] | None = None,
) -> Any:  # fmt: skip
    """The parameters, in float32, each read tensor by tensor straight into the shards of `shardings`.

    Args:
      boxed: our parameters' shapes with their letters.
      shardings: a sharding for each parameter.
      ignored, copies: as of `Family`.
      note: called with the size of each parameter in bytes, when it is there.

    Raises:
      InputError: as `places`, `check` and `check_copies`; or a tensor holds NaN or infinity.
    """
    found = places(boxed, names)
    copies = copies or {}
    check(found, tensors, (*ignored, *copies))
    check_copies(found, names, tensors, copies)
    fused = _fused_sizes(found)

    def one(path: Any, leaf: Lettered, sharding: Any) -> jax.Array:
        place = found[".".join(key.key for key in path)]

        def shard(index: Any) -> np.ndarray:
            return _part(place, leaf.letters, index, tensors, fused)

        array = jax.make_array_from_callback(leaf.value.shape, sharding, shard)
        if note is not None:
            note(array.nbytes)
        return array

    return jax.tree_util.tree_map_with_path(one, boxed, shardings, is_leaf=is_lettered)


def _part(
    place: Place, letters: str, index: tuple[slice, ...], tensors: Tensors, fused: Mapping[str, Mapping[str, int]]
) -> np.ndarray:
    """The part of a parameter that `index` names; of its layers and experts only those that are in it are read."""
    at = dict(zip(letters, index, strict=True))
    layers = list(place.layers or [None])[at.get("L", slice(None))]
    each_expert = "{expert}" in place.theirs.name
    experts = list(range(place.sizes["E"]))[at["E"]] if each_expert else [None]
    inside = tuple(at[a] for a in place.letters)

    def one(layer: int | None, expert: int | None) -> np.ndarray:
        name = place.name(layer, expert)
        tensor = tensors.read(name)
        if place.theirs.fused:
            sizes = [fused[name][letters] for letters in place.theirs.fused]
            start = sum(sizes[: place.theirs.piece])
            where = (slice(None),) * place.theirs.axis + (slice(start, start + sizes[place.theirs.piece]),)
            tensor = tensor[where]
        return place.ours(tensor)[inside]

    assert letters == "L" * (place.layers is not None) + "E" * each_expert + place.letters, letters
    shape = [len(range(*at[a].indices(place.sizes[a]))) for a in letters]
    whole = np.empty(shape, np.float32)
    rows = whole if place.layers is not None else whole[None]
    for row, layer in zip(rows, layers, strict=True):
        for cell, expert in zip(row if each_expert else row[None], experts, strict=True):
            cell[...] = one(layer, expert)  # turned and widened on the way: no second copy of the whole
            if not is_finite(cell):
                raise InputError(
                    f"{place.name(layer, expert)} holds numbers that are not finite (NaN or infinity): the checkpoint "
                    "is damaged, or it diverged when it was trained"
                )
    return whole


def unload(boxed: Any, params: Any, names: Names) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of theirs from our parameters, one at a time: the opposite of `load`.

    Raises:
      InputError: as `places`.
    """
    found = places(boxed, names)
    leaves = {".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    pieces: dict[str, list[tuple[Place, Callable[[], np.ndarray]]]] = {}
    for path, place in found.items():
        experts = range(place.sizes["E"]) if "{expert}" in place.theirs.name else [None]
        for repeat, layer in enumerate(place.layers or [None]):
            for expert in experts:
                index = (() if layer is None else (repeat,)) + (() if expert is None else (expert,))
                take = lambda path=path, index=index: np.asarray(leaves[path][index] if index else leaves[path])  # noqa: E731
                pieces.setdefault(place.name(layer, expert), []).append((place, take))
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[0].theirs.piece)
        arrays = [place.theirs_of(take()) for place, take in parts]
        theirs = parts[0][0].theirs
        yield name, np.ascontiguousarray(np.concatenate(arrays, theirs.axis) if theirs.fused else arrays[0])
