"""A published model that has never been talked to, and has no template for it, is taught to answer."""

import io
import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

import llm_jax
from llm_jax import __main__ as command_line
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation
from llm_jax.text import Alpaca, Message
from llm_jax.text.byte_level import byte_level, bytes_first

END = "<|endoftext|>"
QUESTION = Conversation((Message("user", "Add."),))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The run of an imported GPT-2 of random weights, whose one special token ends a text."""
    folder = tmp_path_factory.mktemp("published")
    rust = byte_level(bytes_first((), ()))
    rust.add_special_tokens([tokenizers.AddedToken(END)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, bos_token=END, eos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    end = rust.get_vocab_size() - 1
    sizes = transformers.GPT2Config(
        vocab_size=end + 1, n_positions=256, n_embd=8, n_layer=1, n_head=1, bos_token_id=end, eos_token_id=end
    )
    transformers.GPT2LMHeadModel(sizes).save_pretrained(folder)
    llm_jax.import_model(folder, folder / "run")
    return folder / "run"


@pytest.fixture
def tuning(base, tmp_path) -> list[str]:
    """What is typed to tune it on a few instructions."""
    records = [dict(instruction="Add.", input=f"{i} and {i}", output=str(2 * i)) for i in range(20)]
    path = tmp_path / "told.json"
    path.write_text(json.dumps(records))
    settings = dict(
        init_from=base,
        steps=2,
        eval_every=2,
        report=(),
        **{"layout.data": 1, "data.batch": 2, "data.split": "ByHash(0.2)"},
    ) | {"data.source": f"JsonLines('{path}')", "data.evaluation_batches": 1}
    return [f"--set={name}={value}" for name, value in settings.items()]


def test_it_is_tuned_with_a_template_that_needs_no_tokens_for_turns(tuning, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    words = ["", "train", "finetune", f"--workdir={run}", *tuning, "--set=data.rendering.template=Alpaca()"]
    assert command_line.main(words) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["rendering"]["template"]["part"] == "llm_jax.text.chat:Alpaca"
    lm = llm_jax.load(run)
    assert lm.template == Alpaca()
    (text,) = lm.generate([QUESTION], max_tokens=4, temperature=0.0)
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("Add.\n"))
    assert command_line.main(["", "chat", f"--workdir={run}", "--max_tokens=4", "--temperature=0"]) == 0
    assert capsys.readouterr().out.strip() == text.strip()


def test_without_one_it_says_what_to_set(base, tuning, tmp_path, capsys):
    assert command_line.main(["", "train", "finetune", f"--workdir={tmp_path / 'run'}", *tuning]) == 2
    error = capsys.readouterr().err
    assert "set data.rendering.template" in error and "Alpaca()" in error and error.count("\n") == 1
    with pytest.raises(
        InputError, match=r"special token 'bos', which this|'(user|end_of_turn)', which this tokenizer lacks"
    ):
        llm_jax.load(base).generate([QUESTION], max_tokens=1)
