"""Every experiment: its manifest, its shapes, and two shrunken steps through the real loop, reports included."""

import json
from typing import Any

import jax
import pytest

import llm_jax
from llm_jax import experiment as experiments
from llm_jax.core.tables import InputError
from llm_jax.data.sources import Download, KingJames, MakemoreNames, TextFiles, TinyShakespeare
from llm_jax.experiment import Experiment
from llm_jax.models.model import Generator
from llm_jax.models.vision import Captioner, ImageClassifier
from llm_jax.text.tokenizer import load_tokenizer
from llm_jax.training import metrics
from llm_jax.training.loop import fill
from llm_jax.training.picture_report import Captions
from llm_jax.training.program import Program
from llm_jax.training.report import Compression, ExactMatch, SampledConversations, Samples
from llm_jax.training.summary import summary

SMALL = {
    "layout.data": 1, "model.stack.repeats": 1, "data.batch": 4, "steps": 2, "log_every": 1, "eval_every": 2,
    "save_every": 2,
}  # fmt: skip
REPORTS = {
    "quickstart": (Compression(), SampledConversations(count=1, turns=1, max_tokens=4)),
    "sort": (ExactMatch("validation", limit=5),),
    "reversed_addition": (ExactMatch("train", limit=5),),
    "digits_captions": (Captions(limit=5, drawn=4),),
    "digits_classifier": (),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An experiment by its name, with small data where it would download, and a small vocabulary."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"name{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300)) * 3)

    def make(name: str) -> Experiment:
        found: Any = llm_jax.get(name)
        changes: dict[str, Any] = dict(SMALL)
        if isinstance(found.model, (Captioner, ImageClassifier)):
            changes["model.image.stack.repeats"] = changes.pop("model.stack.repeats")
        if isinstance(found.data.source, (TinyShakespeare, MakemoreNames, Download)):
            separator = "\n" if isinstance(found.data.source, MakemoreNames) else ""
            changes["data.source"] = TextFiles(str(path), separator)
        elif name in ("small_gpt", "quickstart"):
            changes |= {"tokenizer.vocabulary": 400, "data.evaluation_batches": 1, "data.length": 64}
        samples = Samples(("", "a") if found.data.rendering.bos else ("a",), max_tokens=3)
        return found.override(changes | {"report": REPORTS.get(name, (samples,))})

    return make


@pytest.mark.parametrize("name", experiments.names())
def test_manifest_and_question(name):
    found = llm_jax.get(name)
    assert found.name == name
    assert Experiment.of(json.loads(json.dumps(found.manifest()))) == found
    assert "?" in experiments.question(name)


@pytest.mark.parametrize("name", experiments.names())
def test_two_shrunken_steps(name, small, tmp_path, capfd):
    experiment = small(name)
    said = summary(experiment)
    writes = isinstance(experiment.model, Generator)
    assert "parameters" in said and "FLOPs a token" in said and ("cache bytes" in said) == writes
    state = llm_jax.train(experiment, tmp_path)
    assert int(state.step) == 2 and int(state.skipped) == 0
    lines = [line for line in metrics.read(tmp_path / "metrics.jsonl") if line["split"] != "report"]
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (2, "validation")]
    assert {"loss", "perplexity", "learning_rate", "gradient_norm", "skipped_steps"} <= lines[1].keys()
    assert ("bits_per_byte" in lines[1]) == writes
    assert "accuracy" in lines[2] and lines[1]["tokens_per_second"] > 0
    said = capfd.readouterr().out
    for report in experiment.report:
        expected = {
            ExactMatch: "/5 answers exact",
            Compression: "xz -9e packs the held-out text at",
            SampledConversations: "  person  ",
            Samples: "a",
            Captions: "/5 captions exact",
        }
        assert expected[type(report)] in said
    if not writes:
        with pytest.raises(InputError, match="model must be a Generator"):
            llm_jax.load(tmp_path)


@pytest.mark.parametrize("name", experiments.names())
def test_shapes_at_full_size(name):
    experiment: Any = fill(llm_jax.get(name), load_tokenizer("gpt2")).override({"layout.data": 1})
    template = Program(experiment, experiment.layout.mesh()).template
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(template))


def test_from_python(tmp_path):
    """What the README says."""
    experiment = llm_jax.get("small_gpt").override(SMALL | {
        "model.embed.width": 16, "data.length": 32, "data.source": KingJames(),
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
