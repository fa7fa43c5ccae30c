"""Published encoders and translators as runs: vectors and texts are those of `transformers`, also written back."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

import llm_jax
from llm_jax import __main__ as command_line
from llm_jax.core import parts
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Example, Rendering
from llm_jax.data.examples import SourceAndTarget
from llm_jax.data.packing import BestFit, One, Packing
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import WithLabel
from llm_jax.data.sources import JsonLines, Source
from llm_jax.data.split import ByHash
from llm_jax.engine.restore import restore
from llm_jax.interop.export import export_model
from llm_jax.interop.import_ import import_model
from llm_jax.interop.sentence_transformers import sentence_files
from llm_jax.layers.pooling import Mean, Normalized, Pooler
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.classification import Classification
from llm_jax.optim.optimizers import AdamW
from llm_jax.parallel.layout import Layout

TEXTS = ["the value", "why, none of them"]


@pytest.fixture(scope="module")
def encoder(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "published"
    shutil.copytree(published["bert"], folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(folder)
    return folder


def their_vectors(folder, normalized: bool) -> np.ndarray:
    read: Any = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    model: Any = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        x_BTD = model(**read).last_hidden_state
    if not normalized:
        return x_BTD[:, 0].numpy()
    real_BT1 = read["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((x_BTD * real_BT1).sum(1) / real_BT1.sum(1)).numpy()


def test_sentence_vectors_before_and_after_an_export(encoder, tmp_path, capsys):
    pooled = llm_jax.load(encoder).model
    assert isinstance(pooled, Encoder)
    folder = tmp_path / "sentences"
    shutil.copytree(encoder, folder)
    for path, text in sentence_files(pooled.clone(pooling=Normalized(Mean()))).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    rust = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))  # as all-MiniLM-L6-v2 was published
    rust.enable_padding(length=48, pad_id=0, pad_token="[PAD]")
    rust.enable_truncation(48)
    rust.save(str(folder / "tokenizer.json"))
    assert command_line.main(["", "import", str(folder), f"--workdir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "embed(" in said and "chat" not in said, "an encoder does not talk"
    wanted = their_vectors(encoder, normalized=True)
    for source in (folder, tmp_path / "run"):
        np.testing.assert_allclose(llm_jax.load(source).embed(TEXTS), wanted, atol=1e-5)
    export_model(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/modules.json").read_text())[-1]["type"].endswith("Normalize")
    np.testing.assert_allclose(llm_jax.load(tmp_path / "out").embed(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(their_vectors(tmp_path / "out", normalized=True), wanted, atol=1e-5)
    with pytest.raises(InputError, match="model must be a Generator"):
        llm_jax.load(encoder).generate(["the value"], max_tokens=2)


def test_a_classifier_on_an_imported_encoder_is_theirs_when_it_is_written_back(encoder, tmp_path, caplog):
    labelled = [dict(text=f"the value {number}", label=number % 3) for number in range(20)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    source = JsonLines(str(tmp_path / "labelled.jsonl"))
    import_model(encoder, tmp_path / "run")
    _, _, before = restore(tmp_path / "run")
    experiment = llm_jax.get("finetune").override(
        {
            "init_from": str(tmp_path / "run"), "report": (), "steps": 1, "log_every": 1, "layout": Layout(data=1),
            "model": Classifier(Inherited(), 3, Pooler()), "objective": Classification(),
            "data": Data(
                source, length=16, batch=3, split=ByHash(0.3), packing=One("truncate"), presentation=WithLabel(),
            ),
            "optimizer": AdamW(learning_rate=1e-9),
        }
    )  # fmt: skip
    llm_jax.train(experiment, tmp_path / "tuned")
    program, tokenizer, params = restore(tmp_path / "tuned")
    assert "no place for" not in caplog.text
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-7)  # noqa: E731
    jax.tree.map(close, params["pooling"], before["pooling"])  # as Hugging Face's classifier keeps it
    assert not any("pooling" in name for name in params["backbone"])
    export_model(tmp_path / "tuned", tmp_path / "out")
    read: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    cls: Any = transformers.BertForSequenceClassification
    theirs, said = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values()), said
    model: Any = program.experiment.model
    shares = [llm_jax.load(folder).classify(TEXTS) for folder in (tmp_path / "tuned", tmp_path / "out")]
    for row, text in enumerate(TEXTS):
        ids = read(text).input_ids
        assert ids == [tokenizer.special["bos"], *tokenizer.encode(text), tokenizer.special["eos"]]
        with torch.no_grad():
            wanted = theirs.eval()(torch.tensor([ids])).logits.numpy()
        np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray([ids])), wanted, atol=1e-5)
        for share_BO in shares:
            np.testing.assert_allclose(share_BO[row], jax.nn.softmax(wanted[0]), atol=1e-5)
        assert np.ptp(wanted) > 1e-2


@pytest.fixture(scope="module")
def translator(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5") / "published"
    shutil.copytree(published["t5"], folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(
        vocab_size=len(tokenizer), d_model=24, d_ff=20, d_kv=12, num_layers=2, num_decoder_layers=2, num_heads=2,
        initializer_factor=8.0, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).save_pretrained(folder)
    return folder


def their_texts(folder, forbidden: list[int]) -> list[str]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**read, max_new_tokens=10, do_sample=False, suppress_tokens=forbidden)
    return tokenizer.batch_decode(made, skip_special_tokens=True)


def test_translations_before_and_after_an_export(translator, tmp_path):
    import_model(translator, tmp_path / "run")
    lm = llm_jax.load(tmp_path / "run")
    forbidden = sorted(lm.tokenizer.unsaid)
    wanted = their_texts(translator, forbidden)
    assert lm.generate(TEXTS, max_tokens=10, temperature=0.0) == wanted
    assert all(len(text) > 3 for text in wanted) and wanted[0] != wanted[1]
    export_model(tmp_path / "run", tmp_path / "out")
    assert their_texts(tmp_path / "out", forbidden) == wanted


def test_sentinels_are_written_and_shown(translator, tmp_path):
    """By a model that prefers them, as `transformers` writes them."""
    shutil.copytree(translator, tmp_path / "published")
    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(translator)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(translator)
    with torch.no_grad():
        model.shared.weight[tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])] *= 5
    model.save_pretrained(tmp_path / "published")
    import_model(tmp_path / "published", tmp_path / "run")
    lm = llm_jax.load(tmp_path / "run")
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        made = model.eval().generate(
            **read, max_new_tokens=10, do_sample=False, suppress_tokens=sorted(lm.tokenizer.unsaid)
        )
    wanted = [text.replace("<pad>", "").split("</s>")[0] for text in tokenizer.batch_decode(made)]
    given = lm.generate(TEXTS, max_tokens=10, temperature=0.0)
    assert [text.replace(" ", "") for text in given] == [text.replace(" ", "") for text in wanted]
    assert "<extra_id_" in given[0], given


@pytest.mark.parametrize(("kind", "measured"), [("encoder", "accuracy"), ("translator", "perplexity")])
def test_an_import_is_measured_on_what_it_can_do(kind, measured, request, tmp_path, capsys):
    """Verses in two versions: a translator writes the one from the other, an encoder finds it among others."""
    assert command_line.main(["", "import", str(request.getfixturevalue(kind)), f"--workdir={tmp_path}"]) == 0
    few = ["--set=data.source=Verses(longest=6)", "--set=data.evaluation_batches=1", "--set=layout.data=1"]
    capsys.readouterr()
    assert command_line.main(["", "eval", f"--workdir={tmp_path}", *few]) == 0
    assert measured in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """One of each length of text; the same are held out."""

    def documents(self):
        yield from (Example("the value of x", "why"), Example("none", "the names of them"), Example("of", "a, b and c"))

    def validation(self):
        return self.documents()


@pytest.fixture(scope="module")
def forcing(published, tmp_path_factory):
    """A BART whose texts begin with `</s><s>`, here [SEP] and [CLS]: the latter is forced, and begins its labels."""
    folder = tmp_path_factory.mktemp("bart") / "published"
    shutil.copytree(published["bert"], folder)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(
        vocab_size=vocabulary, d_model=24, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=49, init_std=0.3,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**shape))
    model.generation_config.forced_bos_token_id, model.generation_config.forced_eos_token_id = 2, None
    model.save_pretrained(folder)
    return folder


def their_loss(folder, opening: int) -> float:
    """Of all tokens of the pairs' labels together, but for an opening: each pair alone, so that nothing is padded."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    losses = []
    for pair in Pairs().documents():
        source, labels = (torch.tensor([tokenizer(text).input_ids]) for text in (pair.prompt, pair.answer))
        with torch.no_grad():
            score_TV = model(input_ids=source, labels=labels).logits[0]
        losses.append(torch.nn.functional.cross_entropy(score_TV[opening:], labels[0, opening:], reduction="none"))
    return float(torch.cat(losses).mean())


def tuning(imported, packing: Packing) -> Any:
    return llm_jax.get("finetune").override(
        {
            "init_from": str(imported), "report": (), "steps": 1, "log_every": 1, "layout": Layout(data=1),
            "data": Data(
                Pairs(), length=48, batch=3 if packing == One() else 1, packing=packing,
                rendering=Rendering(learn="answers"), presentation=SourceAndTarget(48),
            ),
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "opening", "packing"),
    [("translator", 0, One()), ("translator", 0, BestFit("refuse")), ("forcing", 1, One())],
    ids=["alone", "packed", "forced"],
)
def test_training_on_a_translator_begins_targets_as_it_does(kind, opening, packing, request, tmp_path):
    """T5 has no `bos`: a target begins with padding. BART's follows `</s><s>`. So does training, loss for loss."""
    folder = request.getfixturevalue(kind)
    import_model(folder, tmp_path / "run")
    dry = parts.transform(
        llm_jax.load(tmp_path / "run").model,
        lambda part: parts.replace(part, dropout=0.0) if "dropout" in parts.settings(part) else part,
    )
    llm_jax.train(tuning(tmp_path / "run", packing).override({"model": dry}), tmp_path / "tuned")
    lines = [json.loads(line) for line in (tmp_path / "tuned/metrics.jsonl").read_text().splitlines()]
    (loss,) = [line["loss"] for line in lines if line["split"] == "train"]
    assert abs(loss - their_loss(folder, opening)) < 1e-4


def test_a_forced_token_leaves_no_room_for_a_second_text_or_a_full_row(forcing, tmp_path, capsys):
    import_model(forcing, tmp_path / "run")
    with pytest.raises(InputError, match=r"model.forced=2 needs a text a row: set data.packing=One\(\)"):
        llm_jax.train(tuning(tmp_path / "run", BestFit("refuse")), tmp_path / "tuned")
    packed = ["--set=data.source=Verses(longest=6)", "--set=data.packing=BestFit('refuse')", "--set=layout.data=1"]
    assert command_line.main(["", "eval", f"--workdir={tmp_path / 'run'}", *packed]) == 2
    assert "model.forced=2 needs a text a row" in capsys.readouterr().err
    data: Any = restore(tmp_path / "run")[0].experiment.data
    assert data.length == 48
    with pytest.raises(InputError, match="49 positions, fewer than the 50"):
        llm_jax.train(tuning(tmp_path / "run", One()).override({"data.length": 49}), tmp_path / "full")
