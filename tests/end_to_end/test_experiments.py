"""Every experiment: its manifest, its shapes, and two shrunken steps through the real loop, reports included."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import llm_jax
from experiments.dpo_base import Sorted
from experiments.word2vec_planted import PlantedPairs, PlantedQuestions
from llm_jax.core import user_modules
from llm_jax.core.errors import InputError
from llm_jax.core.parts import transform
from llm_jax.data.denoising import Denoising
from llm_jax.data.sources import (
    Conversations,
    Download,
    Instructions,
    JsonLines,
    KingJames,
    MakemoreNames,
    SmsSpam,
    TextFiles,
    TinyShakespeare,
)
from llm_jax.data.split import Few
from llm_jax.engine.init_from import inherit
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.interop.import_ import make_run
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import FeedForward, SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import LayerNorm, NoNorm
from llm_jax.layers.positions import Sinusoidal
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.models.model import Generator, Model
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.models.vision import Captioner, ImageClassifier
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.objectives.distillation import Distillation
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.objectives.policy import PolicyGradient
from llm_jax.objectives.rewards import ExactAnswer
from llm_jax.reports.captions import Captions
from llm_jax.reports.preferences import PairAccuracy, Rewarded
from llm_jax.reports.text import Bleu, Compression, ExactMatch, SampledConversations, Samples
from llm_jax.reports.words import Analogies, Neighbours, Similarity
from llm_jax.runs import metrics
from llm_jax.text.kept import Kept
from llm_jax.text.recipes import Bytes
from llm_jax.text.tokenizer import load_tokenizer
from llm_jax.training.summary import summary

SMALL = {
    "layout.data": 1, "data.batch": 4, "steps": 2, "log_every": 1, "eval_every": 2, "save_every": 2,
}  # fmt: skip
TRANSLATION = {
    "tokenizer.vocabulary": 400,
    "data.source.longest": 7,
    "data.length": 64,
    "data.presentation.sources": 64,
}
FEW = 300
BYTES = Bytes().train(["a"])
SHORT_SIDES = {f"model.{side}.stack.repeats": 1 for side in ("encoder", "decoder")}
SMALLER = {  # where there is no model.stack
    "reward_ratings": {"model.backbone.stack.repeats": 1, "tokenizer.vocabulary": 400, "data.length": 32}
    | {"data.source.rounds": 1, "data.evaluation_batches": 2},
    "translate_gru": TRANSLATION | {"model.layers": 1},
    "translate_gru_attention": TRANSLATION | {"model.layers": 1},
    "translate_transformer": TRANSLATION | SHORT_SIDES,
    "denoise_verses": {name: size for name, size in TRANSLATION.items() if name != "data.source.longest"} | SHORT_SIDES,
    "translate_few_pairs": {"data.source.longest": 7, "data.presentation.sources": 64},
    "match_verses": {"model.stack.repeats": 1, "tokenizer.vocabulary": 400, "data.source.longest": 7},
    "word2vec_bible": {"data.evaluation_batches": 1, "model.embed.width": 8},
    "word2vec_planted": {"data.source.sentences": 300},
    "grpo_arithmetic": {"data.group": 2},
    "chatbot/reward": {"model.backbone.embed.width": 16, "data.source.rounds": 1, "data.length": 32}
    | {"data.evaluation_batches": 2},
    "chatbot/align": {"data.group": 2, "data.max_tokens": 4},
    "ppo_arithmetic": {"data.batches": 1},
}
REPORTS = {
    "quickstart": (Compression(), SampledConversations(count=1, turns=1, max_tokens=4)),
    "chatbot/pretrain": (Compression(), Samples(max_tokens=3)),
    "sort": (ExactMatch("validation", limit=5),),
    "reversed_addition": (ExactMatch("train", limit=5),),
    "arithmetic_base": (ExactMatch(limit=5),),
    **dict.fromkeys(
        ("grpo_arithmetic", "ppo_arithmetic"),
        (ExactMatch(limit=5), Rewarded(ExactAnswer(), limit=5, max_tokens=4, show=1)),
    ),
    "digits_captions": (Captions(limit=5, drawn=4),),
    "digits_classifier": (),
    "instructions_tuned": (ExactMatch("validation", limit=5),),
    **dict.fromkeys(
        ("finetune", "finetune_lora", "chatbot/instruct"), (SampledConversations(count=1, turns=1, max_tokens=4),)
    ),
    **dict.fromkeys(
        ("translate_gru", "translate_gru_attention", "translate_transformer", "translate_few_pairs"), (Bleu(limit=3),)
    ),
    **dict.fromkeys(("denoise_verses", "match_verses"), ()),
    **dict.fromkeys(("dpo_base", "dpo"), (Rewarded(Sorted(), limit=5, max_tokens=7, show=1),)),
    **dict.fromkeys(("reward_ratings", "chatbot/reward"), (PairAccuracy(),)),
    "chatbot/align": (Rewarded(Sorted(), limit=5, max_tokens=4, show=1),),
    **dict.fromkeys(("finetune_masked", "spam", "spam_masked_pretraining", "spam_pretrained", "spam_few_labels"), ()),
    "word2vec_bible": (Neighbours(("king",), count=2),),
    "word2vec_planted": (Analogies(PlantedQuestions()), Similarity(PlantedPairs())),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """The folder of a tiny model that came from elsewhere, to train on from."""
    folder = tmp_path_factory.mktemp("base") / "run"
    block = Block(Attention(2, head=8), SwiGLU(24))
    return made("finetune", Decoder(Embed(16, BYTES.vocabulary), Stack((block,), 1), context=256), folder)


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> str:
    """The same of an encoder."""
    folder = tmp_path_factory.mktemp("read") / "run"
    block = Block(Attention(2, head=8, mask=Full()), SwiGLU(24))
    encoder = Encoder(Embed(16, 270), Stack((block,), 1), head=Tied(), context=256)
    return made("finetune_masked", encoder, folder)


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> str:
    """The same of an encoder-decoder."""
    norm, ffn = LayerNorm(), FeedForward(24)
    reads = Block(Attention(2, head=8, mask=Full()), ffn, norm)
    writes = Block(Attention(2, head=8), ffn, norm, cross=CrossAttention(2, head=8))
    reader, writer = (Side(Stack((block,), 1), Sinusoidal(), norm, NoNorm()) for block in (reads, writes))
    model = EncoderDecoder(Embed(16, 270), reader, writer, start=0)
    return made("denoise_verses", model, tmp_path_factory.mktemp("translator") / "run")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    """The same of a reward model."""
    block = Block(Attention(2, head=8), SwiGLU(24))
    scorer = Scorer(Decoder(Embed(16, 270), Stack((block,), 1), context=256))
    return made("reward_ratings", scorer, tmp_path_factory.mktemp("judge") / "run")


def made(name: str, model: Model, folder: Path) -> str:
    experiment: Any = llm_jax.get(name).override({"name": "tiny", "model": model, "layout.data": 1})
    params = Program(experiment, experiment.layout.mesh()).begin().params
    make_run(folder, fill(experiment, BYTES), BYTES, lambda: params)
    return str(folder)


@pytest.fixture(scope="module")
def standing_in(base, judge):
    """An experiment with a run of ours in the place of those whose model it asks: a teacher or a reward model."""

    def make(experiment: Experiment) -> Experiment:
        asked = Pretrained(base if isinstance(experiment.objective, Distillation) else judge)
        return transform(experiment, lambda part: asked if isinstance(part, Pretrained) else part)

    return make


@pytest.fixture(scope="module")
def begun(base, read, translator):
    """By the name of an experiment that goes on from another, the folder of a run that it can go on from."""
    others = {"finetune_masked": read, "translate_few_pairs": translator}
    return lambda name: others.get(name, base)


def goes_on(experiment: Experiment) -> bool:
    """Whether it begins with another run's parameters, by `init_from`."""
    return experiment.tokenizer == Kept()


@pytest.fixture(scope="module")
def small(tmp_path_factory, begun, standing_in):
    """An experiment by its name, with small data where it would download, and a small vocabulary."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"name{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300)) * 3)
    labelled = path.with_name("labelled.jsonl")
    labelled.write_text("\n".join(f'{{"text": "a message, number {i}", "label": {i % 2}}}' for i in range(40)))

    def make(name: str) -> Experiment:
        found: Any = llm_jax.get(name)
        few = {"data.split": Few(FEW, found.data.split)}  # there is less to tokenise, and the same held out
        changes: dict[str, Any] = few | SMALL | SMALLER.get(name, {"model.stack.repeats": 1})
        if isinstance(found.model, (Captioner, ImageClassifier)):
            changes["model.image.stack.repeats"] = changes.pop("model.stack.repeats")
        if isinstance(found.data.source, (TinyShakespeare, MakemoreNames, Download)):
            separator = "\n" if isinstance(found.data.source, MakemoreNames) else ""
            changes["data.source"] = TextFiles(str(path), separator)
        elif isinstance(found.data.source, SmsSpam):
            changes |= {"data.source": JsonLines(str(labelled)), "data.length": 32}
        elif name in ("small_gpt", "quickstart", "chatbot/pretrain"):
            changes |= {"tokenizer.vocabulary": 400, "data.evaluation_batches": 1, "data.length": 64}
        if isinstance(found.data.source, Instructions):
            changes["data.source"] = Conversations()
        if isinstance(found.model, Classifier):
            changes["model.backbone.stack.repeats"] = changes.pop("model.stack.repeats")
        if goes_on(found):
            changes = {path: value for path, value in changes.items() if not path.endswith("stack.repeats")}
            changes = {"data.length": 64, "data.evaluation_batches": 20} | changes | {"init_from": begun(name)}
        found = standing_in(found)
        samples = Samples(("", "a") if found.data.rendering.bos else ("a",), max_tokens=3)
        return found.override(changes | {"report": REPORTS.get(name, (samples,))})

    return make


@pytest.mark.parametrize("name", user_modules.list_names())
def test_manifest_and_question(name):
    found = llm_jax.get(name)
    assert found.name == name
    assert Experiment.of(json.loads(json.dumps(found.manifest()))) == found
    assert "?" in user_modules.description(name)


@pytest.mark.parametrize("name", user_modules.list_names())
def test_two_shrunken_steps(name, small, tmp_path, capfd):
    experiment = small(name)
    said = summary(experiment)
    reads = isinstance(experiment.objective, (Contrastive, MaskedTokens))
    writes = isinstance(experiment.model, (Generator, Inherited)) and not reads
    assert "parameters" in said and (
        isinstance(experiment.model, Word2Vec) or "FLOPs a token" in said or "FLOPs a target" in said
    )
    assert "cache bytes" in said and ("cache bytes a token: none" in said) != writes
    state = llm_jax.train(experiment, tmp_path)
    assert int(state.step) == 2 and int(state.skipped) == 0
    lines = [line for line in metrics.read(tmp_path / "metrics.jsonl") if line["split"] != "report"]
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (2, "validation")]
    objective: Any = experiment.objective
    policy = isinstance(objective, PolicyGradient)
    assert {"loss", "learning_rate", "gradient_norm", "skipped_steps"} <= lines[1].keys()
    assert ("perplexity" in lines[1]) == objective.likelihood
    data: Any = experiment.data
    whole = not isinstance(data.presentation, Denoising)  # what is written then is not the text
    assert ("bits_per_byte" in lines[1]) == (writes and whole and objective.likelihood)
    assert ("accuracy" in lines[2]) == (not policy and not isinstance(experiment.model, Word2Vec))
    if policy:
        assert {"reward", "kl", "kl_per_reply", "entropy", "clip_fraction", "length", "truncated"} <= lines[1].keys()
        assert "reward" in lines[2] and (tmp_path / "completions.jsonl").exists()
    assert lines[1]["tokens_per_second"] > 0
    said = capfd.readouterr().out
    for report in experiment.report:
        expected = {
            ExactMatch: "/5 answers exact",
            Compression: "xz -9e packs the held-out text at",
            SampledConversations: "  person  ",
            Samples: "a",
            Captions: "/5 captions exact",
            Bleu: "BLEU nrefs:1|case:mixed|eff:no|tok:13a",
            Neighbours: "nearest to king: ",
            Analogies: "analogies: ",
            Similarity: "similarity: rank correlation ",
            Rewarded: "5 held-out prompts: reward ",
            PairAccuracy: "held-out pairs: 0.",
        }
        assert expected[type(report)] in said
    if isinstance(experiment.model, Classifier):
        assert llm_jax.load(tmp_path).classify(["a message"]).shape == (1, 2)
    elif isinstance(experiment.model, ImageClassifier):
        assert llm_jax.load(tmp_path).classify(images=np.zeros((3, 8, 8, 1))).shape == (3, 10)
    elif not (writes or reads):
        with pytest.raises(InputError, match="model must be a Generator"):
            llm_jax.load(tmp_path)


@pytest.mark.parametrize("name", user_modules.list_names())
def test_shapes_at_full_size(name, begun, standing_in):
    found, tokenizer = standing_in(llm_jax.get(name)), load_tokenizer("gpt2")
    found = inherit(found.override({"init_from": begun(name)}) if goes_on(found) else found)
    if goes_on(llm_jax.get(name)) or isinstance(found.objective, Distillation):
        tokenizer = BYTES
    experiment: Any = fill(found, tokenizer).override({"layout.data": 1})
    if isinstance(experiment.model, Word2Vec):
        return  # what it prepares from the data needs a tokenizer of words: `test_two_shrunken_steps` has it
    template = Program(experiment, experiment.layout.mesh(), tokenizer).template
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(template))


def test_from_python(tmp_path):
    """What the README says."""
    experiment = llm_jax.get("small_gpt").override(SMALL | {
        "model.stack.repeats": 1, "model.embed.width": 16, "data.length": 32, "data.source": KingJames(),
        "tokenizer.vocabulary": 300, "data.evaluation_batches": 1,
    })  # fmt: skip
    llm_jax.train(experiment, tmp_path / "a")
    lm = llm_jax.load(tmp_path / "a")
    scores = lm.logits([[1, 2, 3], [4, 5, 6]])
    assert scores.shape == (2, 3, lm.tokenizer.vocabulary) and scores.dtype.name == "float32"
    texts = lm.generate(["Once upon", "a"], max_tokens=8, temperature=0.0, seed=0)
    assert len(texts) == 2 and texts == lm.generate(["Once upon", "a"], max_tokens=8, temperature=0.0, seed=1)
    assert llm_jax.text.load_tokenizer("gpt2").encode("Hello, world!") == [15496, 11, 995, 0]
    with pytest.raises(AttributeError, match="llm_jax has no 'trian': it has"):
        _ = llm_jax.trian
