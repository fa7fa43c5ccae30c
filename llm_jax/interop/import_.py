"""From a published checkpoint to a model with its parameters, and to a run's folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from llm_jax.core import parts
from llm_jax.core.errors import InputError, lookup
from llm_jax.core.files import reading, user_path
from llm_jax.core.progress import Progress
from llm_jax.core.runtime import set_up
from llm_jax.core.workers import not_in_worker
from llm_jax.data.documents import Rendering
from llm_jax.data.examples import SourceAndTarget, TwoTexts
from llm_jax.data.noising import Masked
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import WithLabel, WithNumber
from llm_jax.data.sources import Conversations, PythonHelp, Verses
from llm_jax.engine import restore
from llm_jax.engine.step import fill
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.interop import weights
from llm_jax.interop.checkpoint import ADAPTER, CONFIG, Folder, Source, open_source
from llm_jax.interop.configs.generation import BEGINS
from llm_jax.interop.configs.labels import labels, problem_type
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import Family
from llm_jax.interop.sentence_transformers import sentence_encoder
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Generator, Model, Translator
from llm_jax.models.vision import ImageClassifier, ImageEncoder
from llm_jax.objectives.classification import Classification, MultiLabelClassification, Regression
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.objective import Objective, ProblemType
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.parallel.layout import Layout, shardings
from llm_jax.runs.checkpoint_files import saved_steps
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.fingerprints import beside
from llm_jax.runs.folder import Run
from llm_jax.runs.record import record
from llm_jax.text.chat import ChatTemplate
from llm_jax.text.kept import Kept
from llm_jax.text.tokenizer import Tokenizer
from llm_jax.training.loop import keep_tokenizer

OBJECTIVES: dict[ProblemType, type[Objective]] = {
    kind.problem_type: kind for kind in (Classification, MultiLabelClassification, Regression)
}
ROW = 512  # tokens in a row of the data that an imported model is measured on, at most


def import_model(source: str | Path, workdir: str | Path) -> Experiment:
    """Makes a run of a published checkpoint, a Hugging Face folder or a .gguf file, and returns what its manifest says.

    The run has a manifest, the tokenizer, and a checkpoint of step 0 with the parameters alone, so all that takes a
    run's folder works on it; `init_from` trains on from it. Its data, for `eval`, is the default corpus; that of an
    encoder is Python's help with masked tokens, of one without a head, and of a translator, verses of the Bible in two
    versions; a classifier's has to be set.

    Raises:
      InputError: the checkpoint is of a kind that we do not read, has settings that we cannot honour, or does not hold
        the tensors that these ask for; or there is a model in `workdir` already.
    """
    not_in_worker()
    found = open_source(source)
    refuse_images(found)
    tell(found)
    tokenizer, template = found.tokenizer()
    experiment = fill(experiment_of(found, template), tokenizer)

    def params() -> Any:
        with Progress("reading") as progress:
            return read(found, progress=progress)[1]

    make_run(workdir, experiment, tokenizer, params)
    return experiment


def make_run(workdir: str | Path, experiment: Experiment, tokenizer: Tokenizer, params: Callable[[], Any]) -> None:
    """The folder of a run that was not trained here; `params` is called when all else is there.

    Raises:
      InputError: there is a model in `workdir` already, or it cannot be written.
    """
    with Run.open(workdir, experiment.manifest()) as run:
        if saved_steps(run.checkpoints):
            raise InputError(f"there is a model in {workdir} already: use another --workdir")
        keep_tokenizer(tokenizer, run)
        record(run, 0)
        with Checkpoints(run.checkpoints, run.manifest) as checkpoints:
            checkpoints.save(0, {"params": params()}, data={}, metrics={}, beside=beside(run))


def load(
    source: str | Path, modules: tuple[str, ...] = (), *, checkpoint: str = "newest", assignments: Sequence[str] = ()
) -> LanguageModel:
    """The language model of a run's folder, a Hugging Face folder or a .gguf file, to generate and score with.

    Args:
      modules, checkpoint, assignments: as of `engine.restore.restore`, for a run.

    Raises:
      InputError: there is no model, or it is damaged or of a kind that we do not read.
    """
    path = user_path(source)
    with reading(path):
        published = path.is_file() or any((path / name).exists() for name in (CONFIG, ADAPTER))
        is_run = (path / "manifest.json").exists() or not published
    if is_run:
        return restore.load(path, modules, checkpoint=checkpoint, assignments=assignments)
    if assignments or checkpoint != "newest":
        raise InputError(f"{path} is no run, so it has no settings and checkpoints to choose: import it first")
    set_up()
    found = open_source(path)
    refuse_images(found)
    tell(found)
    tokenizer, template = found.tokenizer()
    with Progress("reading") as progress:
        model, params = read(found, progress=progress)
    model = parts.conform(model, Generator | Encoder | Classifier, "the model")
    rendering = rendering_of(found, model, template).settled
    return LanguageModel(
        model, params, tokenizer, template=template, bos=rendering.bos, eos=rendering.eos,
        prompt_eos=rendering.prompt_eos,
        problem_type=problem_type(found.config) if isinstance(model, Classifier) else None,
        labels=labels(found.config) if isinstance(model, Classifier) else None, separators=rendering.separators,
    )  # fmt: skip


def refuse_images(source: Source) -> None:
    """Nothing, if the checkpoint is of a model of texts: a run, and a `LanguageModel`, has a tokenizer.

    Raises:
      InputError: it is of a model of images.
    """
    if isinstance(model_in(source), ImageEncoder | ImageClassifier):
        raise InputError(
            f"a {source.config['model_type']} reads images and has no tokenizer, so it is no run: in Python, "
            "interop.import_.read(interop.checkpoint.open_source(FOLDER)) gives its model and parameters"
        )


def tell(source: Source) -> None:
    """Warns, a line each, of what a checkpoint has and its import has not."""
    for line in source.left:
        logging.warning("%s", line)
    model, said = model_in(source), source.config.get("max_position_embeddings")
    if isinstance(model, Decoder) and said is not None and model.context < said:
        logging.warning(
            "of %d tokens of context the first %d are covered: longrope changes beyond", said, model.context
        )


def experiment_of(source: Source, template: ChatTemplate) -> Experiment:
    """What the folder of an imported model says that it is; its name is that of the family."""
    model = model_in(source)
    opening = (model.opening() if isinstance(model, Generator) else None) or ()
    context = (model.limit() or ROW) - len(opening[1:])  # rows of data have a place for the first of them
    rendering = rendering_of(source, model, template)
    data, objective = Data(Conversations(), min(context, ROW), batch=8, rendering=rendering), NextToken()
    verses = dict(source=Verses(), packing=One("truncate"), rendering=dataclasses.replace(rendering, learn="answers"))
    if isinstance(model, Translator):
        sides = SourceAndTarget(min(model.reads() or ROW, ROW))
        data = dataclasses.replace(data, presentation=sides, **verses)
    elif isinstance(model, Encoder) and model.head is not None:  # which has no template for conversations
        data, objective = dataclasses.replace(data, source=PythonHelp(), presentation=Masked()), MaskedTokens()
    elif isinstance(model, Encoder):
        data, objective = dataclasses.replace(data, presentation=TwoTexts(), **verses), Contrastive()
    elif isinstance(model, Classifier):
        problem = problem_type(source.config)
        objective = OBJECTIVES[problem]()
        counts = problem == "single_label_classification"
        known = WithLabel() if counts else WithNumber()
        names = labels(source.config)
        data = dataclasses.replace(data, packing=One("truncate"), presentation=known, labels=names)
    return Experiment(
        name=source.config["model_type"], model=model, tokenizer=Kept(), data=data, objective=objective,
        optimizer=AdamW(), layout=Layout(), precision=Precision(), steps=1,
    )  # fmt: skip


def rendering_of(source: Source, model: Model, template: ChatTemplate) -> Rendering:
    """How texts were written for the model, as its tokenizer tells. A generator's document ends with `eos` anyhow."""
    apart = isinstance(model, Translator)
    ends = source.adds_eos or isinstance(model, Generator)
    return Rendering(
        bos=source.adds_bos, eos=ends, template=template, prompt_eos=apart and source.adds_eos,
        separators=source.separators if isinstance(model, Classifier) and isinstance(source, Folder) else None,
    )  # fmt: skip


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
      InputError: we do not know it.
    """
    return lookup(FAMILIES, str(config.get("model_type")), "family of checkpoints")


def model_of(config: Mapping[str, Any]) -> Model:
    """Our model for a config.json.

    Raises:
      InputError: we do not know the family, it has settings that we cannot honour, or it begins a text with an id for
        which the embedding has no row.
    """
    model = parts.check(family_of(config).model(config), "model")
    opening = (model.opening() if isinstance(model, Generator) else None) or ()
    if without := [token for token in opening if not 0 <= token < model.words()]:
        raise InputError(
            f"config.json begins a text with the id {without[0]} ({' and '.join(BEGINS)}), for which the model has no "
            f"row: its embedding has {model.words()}"
        )
    return model


def model_in(source: Source) -> Model:
    """Our model for a checkpoint: for its config.json, and the files beside it that say how an encoder embeds texts.

    Raises:
      InputError: as `model_of`, or such a file is not covered.
    """
    model = model_of(source.config)
    return (
        sentence_encoder(model, source.folder) if isinstance(model, Encoder) and isinstance(source, Folder) else model
    )


def read(source: Source, layout: Layout | None = None, progress: Progress | None = None) -> tuple[Model, Any]:
    """The model of a checkpoint and its parameters in float32, read tensor by tensor into the shards of `layout`.

    Args:
      layout: by default each of the devices holds its share.
      progress: what is told how far it is.

    Raises:
      InputError: as `model_of`; or tensors are missing, left over, or of another shape.
    """
    family, model = family_of(source.config), model_in(source)
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    mesh = (layout or Layout(data=1, fsdp=len(jax.devices()))).mesh()
    tensors = usual_names(source.tensors, family.prefix)
    note = None if progress is None else progress.of(sum(leaf.size * 4 for leaf in jax.tree.leaves(boxed)))
    beside = (family.ignored, family.copies, note)
    return model, weights.load(boxed, family.names(model), tensors, shardings(boxed, mesh), *beside)


OLD_NORM = re.compile(r"(LayerNorm\.)(gamma|beta)$")  # as BERT was first published


def usual_names(tensors: weights.Tensors, prefix: str) -> weights.Tensors:
    """With `prefix`, which a checkpoint without its head lacks, and without the names of BERT's first years."""
    bare = bool(prefix) and not any(name.startswith(prefix) for name in tensors.names())

    def usual(name: str) -> str:
        new = OLD_NORM.sub(lambda found: found[1] + dict(gamma="weight", beta="bias")[found[2]], name)
        return prefix + new if bare else new

    return weights.Renamed(tensors, {usual(name): name for name in tensors.names()})
