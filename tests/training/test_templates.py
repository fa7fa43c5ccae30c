"""Published chat templates with tokenizers that are trained here: their tokens are made, learnt and said."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import llm_jax
from llm_jax.data.documents import Conversation, Rendering
from llm_jax.data.packing import BestFit
from llm_jax.data.sources import JsonLines
from llm_jax.engine.init_from import first_tokenizer, inherit
from llm_jax.engine.step import fill
from llm_jax.inference.language_model import LanguageModel
from llm_jax.interop.import_ import make_run
from llm_jax.layers.embedding import Untied
from llm_jax.models.inherited import Inherited
from llm_jax.text import Bpe, Bytes, ChatML, ChatTemplate, Llama3, Message
from llm_jax.text.kept import Kept

ASKED = [Message("user", "how much")]
ENDS = [(ChatML(), "<|im_end|>"), (Llama3(), "<|eot_id|>")]


@pytest.fixture(scope="module")
def talking(tiny, tmp_path_factory) -> Any:
    """Like `tiny`, of conversations; a manifest may name where they are."""
    path = tmp_path_factory.mktemp("data") / "said.jsonl"
    said = '{"messages": [{"role": "user", "content": "how much, %d"}, {"role": "assistant", "content": "%d"}]}\n'
    path.write_text("".join(said % (i, i) for i in range(40)))
    return tiny.override({
        "data.source": JsonLines(str(path)), "data.length": 96, "data.packing": BestFit(), "model.context": 128,
        "model.embed.vocabulary": 0, "model.head": Untied(), "data.rendering": Rendering(learn="answers"),
        "steps": 2, "eval_every": 2,
    })  # fmt: skip


@pytest.mark.parametrize(("template", "end"), ENDS, ids=["ChatML", "Llama3"])
def test_from_scratch_to_a_reply_that_ends_as_the_template_says(talking, template, end, tmp_path):
    llm_jax.train(talking.override({"data.rendering.template": template, "tokenizer": Bpe(290)}), tmp_path)
    lm = llm_jax.load(tmp_path)
    special, tokenizer = lm.tokenizer.special, lm.tokenizer
    assert tokenizer.vocabulary <= 290 and {*template.needs} <= special.keys()
    assert special[end] in tokenizer.ends and {special[n] for n in template.needs if n != end} <= tokenizer.unsaid
    said = "".join(lm.reply(ASKED, max_tokens=3, temperature=0.0))
    prompt, _ = template.render(tokenizer, ASKED, reply=True)
    assert special[template.needs[0]] in prompt and lm.template == template
    # with a score for the end of the turn that is twice the best one, the reply ends where it began
    best_V = np.ma.masked_array(
        lm.logits([prompt])[0, -1], np.isin(np.arange(tokenizer.vocabulary), [*tokenizer.unsaid])
    )
    params = jax.tree.map(np.array, lm.params)
    assert said and best_V.max() > 0
    kernel_DV = params["head"]["kernel"]
    kernel_DV[:, special[end]] = 2 * kernel_DV[:, best_V.argmax()]
    silent = LanguageModel(lm.model, params, tokenizer, template=template)
    assert list(silent.reply(ASKED, max_tokens=3, temperature=0.0)) == []


def test_the_end_of_a_turn_is_said_where_the_template_comes_later_than_the_tokenizer(talking, tmp_path):
    """The tokenizer of a base model may have the tokens of turns, without a template that says what they are for."""
    bare = Bytes().train([], ChatML().needs)
    base = fill(talking.override({"data.rendering.template": ChatML()}), bare)
    params: Any = nn.meta.unbox(base.model.begin(jax.random.key(0)))
    make_run(tmp_path, base, bare, lambda: params)
    again = base.override({"init_from": str(tmp_path), "model": Inherited(), "tokenizer": Kept()})
    end = bare.special["<|im_end|>"]
    assert end not in bare.ends and end in first_tokenizer(inherit(again)).ends


def test_the_project_s_own_template_asks_for_nothing_more(talking):
    data: Any = talking.data
    assert data.rendering.settled.template == ChatTemplate()
    assert data.prepare(Bytes()).identity == Bytes().train([]).identity
    assert Conversation(tuple(ASKED)).tokens(data.prepare(Bytes()), data.rendering)[0][0] == 256
