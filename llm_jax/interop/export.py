"""From a run's folder to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from llm_jax.core import parts
from llm_jax.core.dims import FanIn, Init
from llm_jax.core.errors import InputError
from llm_jax.core.files import delete, open_to_others, reading, unused, user_path
from llm_jax.core.progress import Progress
from llm_jax.core.serialization import to_json
from llm_jax.core.workers import not_in_worker
from llm_jax.engine.restore import restore
from llm_jax.interop import weights
from llm_jax.interop.checkpoint import CONFIG, INDEX, SINGLE
from llm_jax.interop.configs.labels import described
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import Family, blocks_of
from llm_jax.interop.import_ import model_of
from llm_jax.interop.sentence_transformers import sentence_files
from llm_jax.interop.tokenizers.export import export_tokenizer
from llm_jax.layers.feedforward import GEGLU, GatedFeedForward, SwiGLU
from llm_jax.layers.kernels import Dense, Kernel
from llm_jax.layers.pooling import Mean, Pooler
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Generator, Model
from llm_jax.models.stack import Stack
from llm_jax.models.vision import ImageClassifier
from llm_jax.runs.disk import space_for
from llm_jax.runs.folder import SHOWN, differences
from llm_jax.text.tokenizer import Tokenizer

TRAINING_ONLY = ("dropout", "balance", "z")  # settings that matter in training alone: dropout, a router's losses
SHARD = 2**30  # bytes of a file with tensors, about: what is held in memory besides the parameters


def export_model(
    workdir: str | Path, folder: str | Path, checkpoint: str = "newest", *, assignments: Sequence[str] = (),
    modules: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Writes a run's model as a Hugging Face folder: config.json, safetensors in float32, tokenizer files.

    Of a policy with a critic the policy alone is written.

    Args:
      checkpoint: "newest", "best", or a step. Of a run that keeps an average of its parameters, that is written.
      assignments: settings to change first, as of `--set`; the parameters must still fit.
      modules: names of user modules that the manifest may name.

    Raises:
      InputError: there is no such run, no published family has its parts, or `folder` is not empty.
    """
    not_in_worker()
    folder = user_path(folder)
    with reading(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: name a new folder")
    program, tokenizer, params = restore(workdir, assignments, modules, checkpoint)
    model = program.experiment.model
    data = program.experiment.data
    if isinstance(model, ActorCritic):  # no published family has a critic
        model, params = model.actor, params["actor"]
    saving = folder.with_name(f"{folder.name}.saving")
    with contextlib.suppress(OSError):  # of an export that was killed; where it stays, another name is taken
        delete(saving)
    saving = unused(saving)
    with space_for(f"the model is not in {folder}"), Progress("writing") as progress:
        note = progress.of(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        means = {}
        if isinstance(model, Classifier | ImageClassifier):
            objective = program.experiment.objective
            means = described(model.classes, objective.problem_type, data.labels)
        write(model, params, saving, special_ids(tokenizer), likely=program.experiment.name, note=note, means=means)
        rendering, opening = data.rendering.settled, model.opening() if isinstance(model, Generator) else None
        ends = rendering.prompt_eos if isinstance(model, Generator) else rendering.eos
        export_tokenizer(
            tokenizer, rendering.template, saving, bos=rendering.bos, eos=ends, opening=opening,
            separators=rendering.separators or 1 if isinstance(model, Classifier) else None, kinds=_kinds(model),
        )  # fmt: skip
    os.replace(saving, folder)


def _kinds(model: Model) -> int:
    """How many kinds of texts in a row it tells apart."""
    inside = model.backbone if isinstance(model, Classifier) else model
    return max(1, inside.types) if isinstance(inside, Encoder) else 1


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of special tokens: which begins a text, which end one, which fills a row."""
    found = {name: tokenizer.special.get(name) for name in ("bos", "eos", "pad")}
    first = [] if found["eos"] is None else [found["eos"]]
    ends = [*first, *sorted(tokenizer.ends - {found["bos"], found["eos"]})]
    return dict(
        bos_token_id=found["bos"],
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=found["pad"],
    )


def write(
    model: Model, params: Any, folder: Path, special: Mapping[str, Any] | None = None, *, likely: str = "",
    shard: int = SHARD, note: Callable[[int], object] | None = None, means: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """The model as config.json and safetensors, in float32.

    Args:
      special: the ids of special tokens that config.json is to name: `bos_token_id` and so on.
      likely: as of `family_for`.
      shard: the most bytes of a file, unless a single tensor is larger.
      means: what config.json is to say of the scores of a classifier (`interop.configs.labels.described`).
      note: called with the size of each tensor in bytes, when it is on its way.

    Raises:
      InputError: no published family has all of the model's parts, or one that skips another padding token has.
    """
    name, family, config = family_for(model, likely)
    if family.skips_padding and special is not None and special["pad_token_id"] != (pad := config["pad_token_id"]):
        raise InputError(
            f"{name} counts positions without the token {pad}, which is not this tokenizer's padding: "
            "train with model.positions.offset=0, which BERT has"
        )
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    tensors = weights.unload(boxed, params, family.names(model))
    about = dict(architectures=list(family.architectures[:1]), model_type=name, torch_dtype="float32")
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None) | dict(special or {})
    folder.mkdir(parents=True, exist_ok=True)
    beside = sentence_files(model) if isinstance(model, Encoder) and _embeds(model) else {}
    for path, text in beside.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (folder / CONFIG).write_text(
        json.dumps(about | ids | config | dict(means or {}), indent=2) + "\n", encoding="utf-8"
    )
    _write_tensors(folder, tensors, shard, note)


def _write_tensors(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard: int, note: Callable[[int], object] | None
) -> None:
    """As one file, or as several with an index."""
    held: dict[str, np.ndarray] = {}
    files: list[list[str]] = []
    total = 0

    def flush() -> None:
        files.append(list(held))
        saving = folder / f"{len(files)}.saving"
        safetensors.numpy.save_file(held, saving, metadata={"format": "pt"})
        open_to_others(saving)
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard:
            flush()
        held[name] = tensor
        total += tensor.nbytes
        if note is not None:
            note(tensor.nbytes)
    flush()
    if len(files) == 1:
        return os.replace(folder / "1.saving", folder / SINGLE)
    called = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for i, file in enumerate(called, 1):
        os.replace(folder / f"{i}.saving", folder / file)
    where = {name: file for file, inside in zip(called, files, strict=True) for name in inside}
    index = dict(metadata=dict(total_size=total), weight_map=where)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- which family


def family_for(model: Model, likely: str = "") -> tuple[str, Family, dict[str, Any]]:
    """The first family that has all of the model's parts, and the model's config.json: read back, it is the model.

    Args:
      likely: the name of a family to try before the others: some differ in how tensors are cut alone (Phi-3, Mistral).

    Raises:
      InputError: there is none; the message says what stands against the nearest.
    """
    reasons: list[tuple[int, str]] = []
    for name, family in sorted(FAMILIES.items(), key=lambda item: item[0] != likely):
        try:
            config = json.loads(json.dumps(family.config(model)))
            again = model_of(dict(model_type=name) | config)
        except InputError as error:
            reasons.append((len(FAMILIES), f"{name}: {error}"))
            continue
        if isinstance(again, Encoder) and isinstance(model, Encoder) and _embeds(model):
            again = again.clone(pooling=model.pooling)  # which is written beside config.json
        differing = list(differences(to_json(essence(again)), to_json(essence(model)), "model"))
        if not differing:
            return name, family, config
        listed = ", ".join(f"{at} is {parts.show(ours)}, not {parts.show(theirs)}"
                           for at, theirs, ours in differing[:SHOWN])  # fmt: skip
        reasons.append((len(differing), f"{name}: {listed}"))
    nearest = min(reasons, key=lambda reason: reason[0])[1]
    raise InputError(f"no published family has all parts of this model; the nearest is {nearest}")


def _embeds(encoder: Encoder) -> bool:
    """Whether how it pools is written beside config.json: one with a head is for its scores."""
    return encoder.head is None and not isinstance(encoder.pooling, Pooler)


def essence(model: Model) -> Model:
    """The model without what does not change its scores: how it begins, is dropped from, and is computed."""
    if isinstance(model, Decoder):
        own = model.positions
        pattern = tuple(b.clone(positions=b.positions or own.clone()) for b in model.stack.pattern)
        model = model.clone(stack=model.stack.clone(pattern=pattern), context=0)
    if isinstance(model, Encoder):
        model = model.clone(context=0)
    if isinstance(model, EncoderDecoder):
        model = model.clone(context=0, source_context=0)
    if isinstance(model, Classifier) and isinstance(model.backbone, Encoder):  # of which it uses neither
        model = model.clone(backbone=model.backbone.clone(context=0, pooling=Mean(), head=None))
    return parts.transform(model, _plain)


def _plain(part: Any) -> Any:
    changes: dict[str, Any] = {}
    for name in parts.settings(part):
        match getattr(part, name):
            case Init():
                changes[name] = FanIn()
            case Kernel():
                changes[name] = Dense()
            case float() if name in TRAINING_ONLY:
                changes[name] = 0.0
    if isinstance(part, Stack):
        changes |= dict(pattern=tuple(blocks_of(part)), repeats=1, run="auto", remat="none")
    if type(part) in (SwiGLU, GEGLU):
        return GatedFeedForward(part.hidden, part.activation, part.bias)
    return parts.replace(part, **changes) if changes else part
