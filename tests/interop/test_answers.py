"""A published folder, model and tokenizer together: its answers are those of `transformers`, also when written back."""

import json
import shutil
from typing import Any

import pytest
import torch
import transformers

import llm_jax
from llm_jax.interop.checkpoint import Folder
from llm_jax.interop.export import export_model
from llm_jax.interop.import_ import import_model
from llm_jax.text import Llama3, Message

ASKED = [Message("user", "the value?"), Message("assistant", "none"), Message("user", "why")]


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "published"
    shutil.copytree(published["llama3"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | dict(chat_template=Llama3().source)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    shape: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).save_pretrained(folder)
    return folder


def their_answer(folder, forbidden: list[int]) -> str:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    said = [dict(role=m.role, content=m.content) for m in ASKED]
    ids_BT = torch.tensor([tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)])
    with torch.no_grad():
        whole = model.generate(
            ids_BT, max_new_tokens=12, do_sample=False, suppress_tokens=forbidden, pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    return tokenizer.decode(whole[0, ids_BT.shape[1] :], skip_special_tokens=True)


def test_an_answer_is_that_of_transformers_before_and_after_an_export(folder, tmp_path):
    import_model(folder, tmp_path / "run")
    lm = llm_jax.load(tmp_path / "run")
    said = "".join(lm.reply(ASKED, max_tokens=12, temperature=0.0))
    forbidden = sorted(lm.tokenizer.beside - lm.tokenizer.ends)
    assert said == their_answer(folder, forbidden) and len(said) > 3
    export_model(tmp_path / "run", tmp_path / "out")
    assert their_answer(tmp_path / "out", forbidden) == said
    again, template = Folder(tmp_path / "out").tokenizer()
    assert Folder(tmp_path / "out").adds_bos and Folder(folder).adds_bos and lm.bos
    assert (again.identity, template) == (lm.tokenizer.identity, lm.template)
