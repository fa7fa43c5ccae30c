"""What stands beside an encoder of sentences, read and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_jax.core.errors import InputError
from llm_jax.interop.families.bert import BERT
from llm_jax.interop.sentence_transformers import sentence_encoder, sentence_files
from llm_jax.layers.pooling import First, Last, Mean, Normalized, Pooler
from llm_jax.models.encoder import Encoder

CONFIG = dict(
    architectures=["BertModel"], vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=32,
)  # fmt: skip


def encoder() -> Encoder:
    model = BERT.model(CONFIG)
    assert isinstance(model, Encoder)
    return model


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize("pooling", [Mean(), First(), Normalized(Mean()), Normalized(Last())], ids=str)
def test_written_and_read_again(pooling, tmp_path):
    model = encoder().clone(pooling=pooling, context=24)
    write(tmp_path, sentence_files(model))
    assert sentence_encoder(encoder(), tmp_path) == model


def test_a_plain_encoder_stays_as_it_is(tmp_path):
    assert sentence_encoder(encoder(), tmp_path) == encoder()


def test_what_is_not_covered_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no word for model\.pooling=Pooler"):
        sentence_files(encoder().clone(pooling=Pooler()))
    files = sentence_files(encoder().clone(pooling=Mean()))
    write(tmp_path, files)
    for name, content in (
        ("sentence_bert_config.json", dict(do_lower_case=True)),
        ("config_sentence_transformers.json", dict(prompts=dict(query="query: "), default_prompt_name="query")),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"{name} has d.* which is\s+not covered"):
            sentence_encoder(encoder(), tmp_path)
        (tmp_path / name).write_text("{}")
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(dict(pooling_mode_max_tokens=True)))
    with pytest.raises(InputError, match="the pooling pooling_mode_max_tokens is not covered"):
        sentence_encoder(encoder(), tmp_path)
    steps = [*json.loads(files["modules.json"]), dict(type="sentence_transformers.models.Dense", path="2_Dense")]
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(InputError, match="steps Transformer, Pooling, Dense, which is not covered"):
        sentence_encoder(encoder(), tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*modules\.json"):
        sentence_encoder(encoder(), tmp_path)
