"""Classifiers of texts beside transformers' pipelines: what their scores mean, in and out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.documents import TextPair
from llm_jax.data.files import JsonLines
from llm_jax.data.presentation import WithLabel
from llm_jax.data.split import ByHash, LastDocuments
from llm_jax.engine.labels import with_labels
from llm_jax.engine.restore import load as load_run
from llm_jax.engine.restore import restore
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Experiment
from llm_jax.interop.configs.labels import labels, problem_type
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.classification import Classification, MultiLabelClassification, Regression
from llm_jax.parallel.layout import Layout
from llm_jax.reports.base import findings
from llm_jax.reports.classes import ClassificationReport
from llm_jax.text.kept import Kept

from .torch_tensors import drawn

TEXTS = ["The value of an object.", "a loop", "déjà vu", "for every name in the list of names, one at a time"]
PROBLEMS: Any = [
    pytest.param(settings, objective, id=f"{settings.get('problem_type')}-{settings['num_labels']}")
    for settings, objective in (
        (dict(num_labels=3), Classification),
        (dict(num_labels=3, problem_type="multi_label_classification"), MultiLabelClassification),
        (dict(num_labels=1), MultiLabelClassification),
        (dict(num_labels=1, problem_type="regression"), Regression),
    )
]


def folder_of(published: dict[str, Path], folder: Path, cls: Any = None, **settings: Any) -> Path:
    """A random classifier with BERT's tokenizer, as `save_pretrained` leaves it."""
    cls = cls or transformers.BertForSequenceClassification
    shape = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10)
    config = cls.config_class(vocab_size=700, max_position_embeddings=48, **shape | settings)
    drawn(cls(config), 3).save_pretrained(folder)
    for path in published["bert"].iterdir():
        shutil.copy(path, folder)
    return folder


def theirs(folder: Path, texts: Any = TEXTS) -> tuple[list[str], np.ndarray]:
    """The names of the classes in order, and [B, O] what the pipeline says of each text."""
    ask = transformers.pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    order = [name for _, name in sorted(ask.model.config.id2label.items())]  # pyright: ignore[reportOptionalMemberAccess]
    said = [{each["label"]: each["score"] for each in ask([text])[0]} for text in texts]  # pyright: ignore
    return order, np.array([[each[name] for name in order] for each in said])


@pytest.mark.parametrize(("settings", "objective"), PROBLEMS)
def test_scores_mean_what_the_pipeline_says_and_come_back(settings, objective, published, tmp_path):
    folder = folder_of(published, tmp_path / "theirs", **settings)
    names, wanted_BO = theirs(folder)
    np.testing.assert_allclose(llm_jax.load(folder).classify(TEXTS), wanted_BO, atol=1e-5)

    experiment = llm_jax.import_model(folder, tmp_path / "run")
    assert isinstance(experiment.objective, objective)
    np.testing.assert_allclose(load_run(tmp_path / "run").classify(TEXTS), wanted_BO, atol=1e-5)
    llm_jax.export_model(tmp_path / "run", tmp_path / "ours")
    again, back_BO = theirs(tmp_path / "ours")
    assert again == names
    np.testing.assert_allclose(back_BO, wanted_BO, atol=1e-5)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").problem_type == objective.problem_type


def test_a_cross_encoder_says_itself_what_is_done_to_its_score():
    identity = "torch.nn.modules.linear.Identity"
    one = dict(id2label={"0": "LABEL_0"})
    assert problem_type(one) == "multi_label_classification"
    assert problem_type(one | dict(sentence_transformers=dict(activation_fn=identity))) == "regression"
    assert problem_type(one | dict(sbert_ce_default_activation_function=identity)) == "regression"
    sigmoid = dict(activation_fn="torch.nn.modules.activation.Sigmoid")
    assert problem_type(one | dict(sentence_transformers=sigmoid)) == "multi_label_classification"
    assert problem_type(dict(num_labels=2, sentence_transformers=sigmoid)) == "single_label_classification"
    with pytest.raises(InputError, match=r"activation_fn=torch\.nn\.Tanh, which is not covered"):
        problem_type(one | dict(sentence_transformers=dict(activation_fn="torch.nn.Tanh")))
    with pytest.raises(InputError, match="problem_type='regresion': did you mean 'regression'"):
        problem_type(one | dict(problem_type="regresion"))


def test_a_score_that_stays_as_it_is_says_so_to_a_cross_encoder(published, tmp_path):
    llm_jax.import_model(folder_of(published, tmp_path / "a", num_labels=1, problem_type="regression"), tmp_path / "b")
    llm_jax.export_model(tmp_path / "b", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["sentence_transformers"] == dict(activation_fn="torch.nn.modules.linear.Identity")


NAMES = ("NEGATIVE", "POSITIVE", "none of both")
CHANGES = {
    "layout": Layout(1),
    "tokenizer": Kept(),
    "model": Inherited(),
    "steps": 1,
    "log_every": 1,
    "eval_every": 1,
    "save_every": 1,
}


def test_names_of_classes_are_kept_from_a_folder_through_a_training_to_a_folder(published, tmp_path):
    """In the folder's order, which is not the alphabet's: what is trained on says classes by name."""
    order = (NAMES[1], NAMES[2], NAMES[0])
    folder = folder_of(published, tmp_path / "theirs", id2label=dict(enumerate(order)), num_labels=3)
    assert llm_jax.load(folder).labels == order
    experiment = llm_jax.import_model(folder, tmp_path / "run")
    assert load_run(tmp_path / "run").labels == experiment.data.labels == order  # pyright: ignore

    lines = [json.dumps(dict(text=f"text {i}", label=NAMES[i % 3])) for i in range(24)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = {"data.source": JsonLines(str(tmp_path / "a.jsonl")), "data.labels": None, "data.split": ByHash(0.3)}
    tuned = experiment.override(
        data | CHANGES | {"init_from": str(tmp_path / "run"), "report": (ClassificationReport(),)}
    )
    with pytest.raises(InputError, match=r"are the classes of .*run in another order"):
        llm_jax.train(tuned.override({"data.labels": NAMES}), tmp_path / "tuned")
    with pytest.raises(
        InputError, match=r"model.classes=3, and there are 2 classes by name \(a, b\): set model.classes=2"
    ):
        llm_jax.train(tuned.override({"data.labels": ("a", "b")}), tmp_path / "tuned")
    llm_jax.train(tuned, tmp_path / "tuned")
    assert load_run(tmp_path / "tuned").labels == order
    kept = Experiment.of(json.loads((tmp_path / "tuned" / "manifest.json").read_text()))
    first: Any = kept.data.documents("train")  # pyright: ignore
    assert all(order[d.label] == NAMES[int(d.text().split()[1]) % 3] for d in first)
    program, tokenizer, params = restore(tmp_path / "tuned")
    (finding,) = findings(Finished(program.experiment, tokenizer, params))
    assert [line.split(":")[0].strip() for line in finding.lines[1:4]] == list(order)

    llm_jax.export_model(tmp_path / "tuned", tmp_path / "ours")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.id2label == dict(enumerate(order)) and config.label2id == {name: i for i, name in enumerate(order)}
    assert with_labels(tuned, tmp_path / "tuned").data.labels == order  # pyright: ignore  (it goes on)


def test_numbers_in_disguise_are_no_names():
    assert labels(dict(id2label={"0": "LABEL_0", "1": "LABEL_1"})) is None and labels({}) is None
    assert labels(dict(id2label={"1": "LABEL_0", "0": "LABEL_1"})) == ("LABEL_1", "LABEL_0")
    assert labels(dict(id2label={str(i): f"c{i}" for i in range(11)}))[10] == "c10"  # pyright: ignore
    for wrong in ({"0": "a", "2": "b"}, {"0": None}, {"a": "b"}):
        with pytest.raises(InputError, match="id2label must have a name for each number from 0 to"):
            labels(dict(id2label=wrong))


PAIRS = [("The value of an object.", "a loop"), ("a", "for every name in the list"), ("déjà vu", "déjà vu")]


@pytest.mark.parametrize(
    ("cls", "template", "settings"),
    [
        (transformers.BertForSequenceClassification, "[CLS] $A [SEP] $B:1 [SEP]:1", {}),
        (
            transformers.RobertaForSequenceClassification,
            "[CLS] $A [SEP] [SEP] $B [SEP]",
            dict(type_vocab_size=1, pad_token_id=0),
        ),
    ],
)
def test_two_texts_are_read_as_the_pipeline_reads_them(cls, template, settings, published, tmp_path):
    """By `classify`, by the data that a training reads, and by what is made of an export."""
    folder = folder_of(published, tmp_path / "theirs", cls, num_labels=3, **settings)
    rust: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("[CLS]", 2), ("[SEP]", 3)]
    rust.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", template, special)
    rust.save(str(folder / "tokenizer.json"))
    if "type_vocab_size" not in settings:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, wanted_BO = theirs(folder, [dict(text=first, text_pair=second) for first, second in PAIRS])
    lm = llm_jax.load(folder)
    np.testing.assert_allclose(lm.classify(PAIRS), wanted_BO, atol=1e-5)
    mixed_BO = lm.classify(["a loop", PAIRS[0], lm.tokenizer.encode("a loop"), PAIRS[1]])
    np.testing.assert_allclose(mixed_BO[[1, 3]], wanted_BO[:2], atol=1e-5)
    np.testing.assert_allclose(mixed_BO[0], lm.classify(["a loop"])[0], atol=1e-6)
    first, second = PAIRS[0]
    assert np.abs(lm.classify([(second, first)])[0] - wanted_BO[0]).max() > 1e-3

    experiment = llm_jax.import_model(folder, tmp_path / "run")
    lines = [json.dumps(dict(premise=one, hypothesis=two, label=i % 2)) for i, (one, two) in enumerate(PAIRS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = JsonLines(str(tmp_path / "a.jsonl"), "premise", "hypothesis")
    data: Any = experiment.override({"data.source": source, "data.split": LastDocuments(0.0)}).data
    (batch,) = data.evaluation(lm.tokenizer, split="train")
    score_BO: Any = lm.model.apply({"params": lm.params}, jax.tree.map(jnp.asarray, batch), None, method="classify")
    np.testing.assert_allclose(jax.nn.softmax(score_BO)[: len(PAIRS)], wanted_BO, atol=1e-5)

    llm_jax.export_model(tmp_path / "run", tmp_path / "ours")
    before, after = (transformers.AutoTokenizer.from_pretrained(place) for place in (folder, tmp_path / "ours"))
    for pair in PAIRS:
        assert before(*pair)["input_ids"] == after(*pair)["input_ids"]
        assert before(*pair).get("token_type_ids") == after(*pair).get("token_type_ids")
        cut = dict(truncation="longest_first", max_length=9)
        shown = WithLabel().shortened(TextPair(*pair, 0), lm.tokenizer, data.rendering, 9)
        assert shown.tokens(lm.tokenizer, data.rendering)[0] == before(*pair, **cut)["input_ids"]
