"""Text in, text out: logits, generation, streaming, replies, forgetting, and parameters spread over devices."""

import datetime
import logging
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.parallel.layout import Layout, shardings
from llm_jax.text.byte_level import byte_level, bytes_first
from llm_jax.text.chat import ChatTemplate, Jinja, Message
from llm_jax.text.recipes import Bytes, WordPiece
from llm_jax.text.tokenizer import Tokenizer

TOKENIZER = Bytes().train([])
WARM = dict(temperature=2.0, top_k=50)


@pytest.fixture(scope="module")
def lm(tiny):
    model = tiny.decoder(tiny.attention(), vocabulary=TOKENIZER.vocabulary + 3)  # a few ids stand for nothing
    return LanguageModel(model, tiny.initial(model), TOKENIZER)


def test_logits_are_the_model_s(lm):
    ids_BT = np.array([[1, 2, 3, 250], [4, 5, 6, 7]])
    expected, _ = jax.jit(lm.model.apply)({"params": lm.params}, ids_BT.astype(np.int32))
    logits_BTV = lm.logits(ids_BT)
    assert isinstance(logits_BTV, np.ndarray)
    assert logits_BTV.dtype == np.float32
    np.testing.assert_allclose(logits_BTV, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [[[1, 999]], [[-1]], [1, 2], [[0.5]], [[]], [[1, 2], [3]], [["a"]], [[2**70]], None])
def test_logits_of_no_ids_are_refused(lm, wrong):
    with pytest.raises(InputError, match=r"ids_BT|token id"):
        lm.logits(wrong)


def test_plain_text_begins_with_bos_where_the_data_did(tiny, lm):
    bos = TOKENIZER.special["bos"]
    for with_bos in (True, False):
        here = LanguageModel(lm.model, lm.params, TOKENIZER, bos=with_bos)
        ids = [bos] * with_bos + list(b"hello")
        best = int(here.logits([ids])[0, -1, : TOKENIZER.vocabulary].argmax())
        assert here.generate(["hello"], max_tokens=1, temperature=0.0) == [TOKENIZER.decode([best])]


def test_an_empty_prompt_needs_a_bos(lm):
    assert len(lm.generate([""], max_tokens=3, **WARM)) == 1
    with pytest.raises(InputError, match="the prompt is empty"):
        LanguageModel(lm.model, lm.params, TOKENIZER, bos=False).generate([""])
    assert lm.generate([]) == []


def test_seeds_decide(lm):
    prompts = ["hello", "a", "hello"]
    first = lm.generate(prompts, max_tokens=20, seed=1, **WARM)
    assert first == lm.generate(prompts, max_tokens=20, seed=1, **WARM)
    assert first != lm.generate(prompts, max_tokens=20, seed=2, **WARM)
    assert first[0] != first[2]
    assert lm.generate(["hello"], max_tokens=20, seed=1, **WARM) == first[:1]


def test_the_stream_is_what_generate_says(lm):
    (whole,) = lm.generate(["hello"], max_tokens=30, seed=1, **WARM)
    pieces = list(lm.stream("hello", max_tokens=30, seed=1, **WARM))
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_stop_strings_cut_each_row(lm):
    prompts = ["hello", "a", "hello"]
    whole = lm.generate(prompts, max_tokens=30, seed=1, **WARM)
    stop = whole[0][5:8]
    cut = lm.generate(prompts, max_tokens=30, seed=1, stop=stop, **WARM)
    assert cut == [text.split(stop)[0] for text in whole]
    assert lm.generate(prompts, max_tokens=30, seed=1, stop=["never said", stop], **WARM) == cut
    assert "".join(lm.stream("hello", max_tokens=30, seed=1, stop=[stop], **WARM)) == cut[0]
    with pytest.raises(InputError, match="must not be empty"):
        lm.generate(prompts, stop="")


def test_a_word_after_the_prompt_keeps_its_space(lm):
    words = WordPiece(vocabulary=80).train(["ab cd ab cd abcd"] * 9)
    here = LanguageModel(lm.model, lm.params, words)
    prompt = here._plain("ab")
    (next_,) = words.encode("cd")[:1]
    stream = here._stream_after(prompt)
    assert stream.push(next_).startswith(" ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_tokens=80), "the prompt has 3 tokens, and with max_tokens=80 .* context of 64: ask for at most 61"),
        (dict(temperature=-1.0), "temperature must be a number at least 0"),
        (dict(top_p=0.0), "top_p"),
        (dict(max_tokens=0), "max_tokens must be 1 or more"),
        (dict(max_tokens="5"), "max_tokens must be 1 or more, not '5': a whole number"),
        (dict(max_tokens=2.5), "max_tokens must be 1 or more, not 2.5: a whole number"),
        (dict(temperature="0.5"), "temperature must be "),
        (dict(stop=5), "stop must be "),
        (dict(stop=["a", 5]), "stop.1 must be "),
    ],
)
def test_bad_settings_are_refused_at_once(lm, settings, message):
    with pytest.raises(InputError, match=message):
        lm.generate(["hi"], **settings)
    with pytest.raises(InputError, match=message):
        lm.stream("hi", **settings)  # before the first piece is asked for
    with pytest.raises(InputError, match="list of texts"):
        lm.generate("hi")


def test_a_reply_goes_on_from_the_rendered_conversation(lm):
    messages = [Message("user", "hi")]
    ids, _ = ChatTemplate().render(TOKENIZER, messages, reply=True)
    best = int(lm.logits([ids])[0, -1, : TOKENIZER.vocabulary].argmax())
    assert "".join(lm.reply(messages, max_tokens=1, temperature=0.0)) == TOKENIZER.decode([best])


def test_a_reply_knows_the_date_and_what_is_generated_from_data_does_not(lm):
    def writing(template):
        return LanguageModel(lm.model, lm.params, TOKENIZER, template=template)

    dated, talk = writing(Jinja("{{ strftime_now('%Y') + ' says:' }}")), Conversation((Message("user", "hi"),))
    live = "".join(dated.reply(talk.messages, max_tokens=9, temperature=0.0))
    of_data = dated.generate([talk], max_tokens=9, temperature=0.0)[0]
    years = (datetime.datetime.now().year, 2024)
    told = [writing(Jinja(f"{year} says:")).generate([talk], max_tokens=9, temperature=0.0)[0] for year in years]
    assert [live, of_data] == told and live != of_data


def test_a_conversation_is_a_prompt_like_another(lm):
    talk = Conversation((Message("user", "hi"),), tools=('{"name": "f"}',))
    said = lm.generate([talk, "hi"], max_tokens=4, temperature=0.0)
    assert said[0] == "".join(lm.reply(talk.messages, max_tokens=4, temperature=0.0, tools=talk.tools))
    assert said[0] != "".join(lm.reply(talk.messages, max_tokens=4, temperature=0.0))
    assert said[1] == lm.generate(["hi"], max_tokens=4, temperature=0.0)[0]


def test_a_reply_ends_at_the_end_of_its_turn(tiny, lm):
    said = "".join(lm.reply([Message("user", "hi")], max_tokens=8, temperature=0.0))
    end = TOKENIZER.special["end_of_turn"]
    params = jax.tree.map(lambda x: x, lm.params)
    # with the head's columns of the first letter said and of end_of_turn swapped, the turn ends where it began
    ids, _ = ChatTemplate().render(TOKENIZER, [Message("user", "hi")], reply=True)
    best = int(lm.logits([ids])[0, -1, : TOKENIZER.vocabulary].argmax())
    kernel_DV = np.array(params["head"]["kernel"])
    kernel_DV[:, [best, end]] = kernel_DV[:, [end, best]]
    params["head"]["kernel"] = kernel_DV
    silent = LanguageModel(lm.model, params, TOKENIZER)
    assert said
    assert list(silent.reply([Message("user", "hi")], max_tokens=8, temperature=0.0)) == []


def test_only_tokens_that_end_a_text_structure_it(tiny, lm):
    """Roles, padding and masks are never drawn; the end of a turn ends plain text too."""
    for name, likely in (("user", True), ("pad", True), ("end_of_turn", False), ("eos", False)):
        kernel_DV = np.array(lm.params["head"]["kernel"])
        ids = lm._plain("hi")
        best = int(lm.logits([ids])[0, -1, : TOKENIZER.vocabulary].argmax())
        kernel_DV[:, TOKENIZER.special[name]] = 2 * kernel_DV[:, best]  # likelier than the best
        there = LanguageModel(lm.model, {**lm.params, "head": {"kernel": kernel_DV}}, TOKENIZER)
        expected = TOKENIZER.decode([best]) if likely else ""
        assert there.generate(["hi"], max_tokens=1, temperature=0.0) == [expected]
        assert "".join(there.stream("hi", max_tokens=1, temperature=0.0)) == expected


def test_without_a_number_the_context_is_filled(lm):
    whole = lm.generate(["hello"], seed=1, **WARM)
    assert whole == lm.generate(["hello"], max_tokens=64 - 6, seed=1, **WARM)
    assert whole == ["".join(lm.stream("hello", seed=1, **WARM))]


def test_the_oldest_turns_go_first_and_the_system_stays(lm):
    system, *turns = [
        Message("system", "s"), Message("user", "a" * 9), Message("assistant", "b" * 9), Message("user", "c" * 9),
        Message("assistant", "d" * 9), Message("user", "e" * 9),
    ]  # fmt: skip
    assert lm.remember([system, *turns], 1) == [system, *turns]  # 60 tokens of 64
    assert lm.remember([system, *turns], 5) == [system, *turns[2:]]  # an answer goes with its question
    assert lm.remember([system, *turns], 30) == [system, *turns[4:]]
    assert lm.remember([system, *turns]) == [system, *turns[2:]]  # a quarter of the context is left for the answer
    assert lm.remember(turns[-1:]) == turns[-1:]
    assert lm.remember([]) == []
    with pytest.raises(InputError, match=r"latest message has 16 tokens .* 50 for the answer .* context of 64"):
        lm.remember([system, *turns], 50)


def test_forgetting_is_said_once(lm, caplog):
    turns = [Message("user", "a" * 9), Message("assistant", "b" * 9)] * 4 + [Message("user", "c")]
    with caplog.at_level(logging.WARNING, "absl"):
        for _ in range(2):
            "".join(lm.reply(turns, max_tokens=5))
    assert [r.getMessage() for r in caplog.records] == [
        "the conversation outgrew the context of 64 tokens: its oldest turns are left out"
    ]


def test_parameters_spread_over_devices_say_the_same(tiny, lm):
    mesh = Layout(2, 2, 2).mesh()
    spread = jax.device_put(lm.params, shardings(tiny.shapes(lm.model), mesh))
    assert len(spread["embed"]["table"].sharding.device_set) == 8
    prompts = ["hello", "a", "hello", "abc"]
    with jax.set_mesh(mesh):
        there = LanguageModel(lm.model, spread, TOKENIZER).generate(prompts, max_tokens=10, temperature=0.0)
    assert there == lm.generate(prompts, max_tokens=10, temperature=0.0)
    outside = LanguageModel(lm.model, spread, TOKENIZER)
    assert outside.generate(prompts[:1], max_tokens=10, temperature=0.0) == there[:1]


def test_a_published_tokenizer_says_itself_what_ends_a_text_and_what_is_not_drawn(tiny):
    special = {"bos": 256, "eos": 257, "<|start|>": 256, "<|end|>": 257, "<file>": 258}
    published = Tokenizer(byte_level(bytes_first((), ())), special, "letters", marks={"<think>": 259}, ends={257})
    model = tiny.decoder(tiny.attention(), vocabulary=260)
    here = LanguageModel(model, tiny.initial(model), published)
    generation = here._begin([[1, 2]], 1, Sampling(), 0)
    assert np.flatnonzero(generation._stops_V).tolist() == [257]
    assert np.flatnonzero(generation._never_V).tolist() == [256, 258]
    bare = Tokenizer(byte_level(bytes_first((), ())), {"eos": 256}, "letters")
    with pytest.raises(InputError, match="has no special token 'bos' for texts"):
        LanguageModel(model, here.params, bare).generate(["a"])


def test_scores_that_are_no_numbers_are_refused(lm):
    """An argmax over NaN is token 0, or wherever the NaN stands: "!!!!" of GPT-2."""
    damaged = jax.tree.map(lambda x: x.at[..., 0].set(np.nan), lm.params)
    here = LanguageModel(lm.model, damaged, TOKENIZER)
    ways: list[dict[str, Any]] = [dict(temperature=0.0), WARM, dict(top_p=0.9), dict(min_p=0.1)]
    for settings in ways:
        with pytest.raises(
            InputError, match="scores for the next token of text 0 are not finite: the model's parameters"
        ):
            here.generate(["hello", "a"], max_tokens=3, **settings)
    with pytest.raises(InputError, match="are not finite"):
        list(here.stream("hello", max_tokens=3))
    with pytest.raises(InputError, match="are not finite"):
        list(here.reply([Message("user", "hello")], max_tokens=3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_score_that_is_no_number_is_refused_when_it_would_decide(lm, value):
    """After some tokens that were drawn as they should be, in the row that it concerns."""
    prompts = ["hello", "good day"]
    said = lm.generate(prompts, max_tokens=8, temperature=0.0)
    first = lm.tokenizer.encode(said[1])[0]
    assert first not in lm.tokenizer.encode(prompts[0] + said[0] + prompts[1])
    table_VD = lm.params["embed"]["table"].at[first, 0].set(value)
    here = LanguageModel(lm.model, {**lm.params, "embed": {**lm.params["embed"], "table": table_VD}}, TOKENIZER)
    assert here.generate(prompts[:1], max_tokens=8, temperature=0.0) == said[:1]
    with pytest.raises(InputError, match="the next token of text 1 are not finite"):
        here.generate(prompts, max_tokens=8, temperature=0.0)


@pytest.fixture
def published(lm):
    """A model whose tokenizer has special tokens with published names."""
    end = TOKENIZER.special["end_of_turn"]
    tokenizer = TOKENIZER.having({"<|go|>": TOKENIZER.special["user"], "<|end|>": end, "<s>": TOKENIZER.special["bos"]})
    return LanguageModel(lm.model, lm.params, tokenizer)


def test_token_ids_are_a_prompt_wherever_text_is(published):
    some, ids = dict(max_tokens=6, temperature=0.0), published._plain("hello")
    (said,) = published.generate(["hello"], **some)
    for prompt in (ids, tuple(ids), np.array(ids)):
        assert published.generate([prompt, "hello"], **some) == [said, said]
        assert "".join(published.stream(prompt, **some)) == said
    assert published.generate(np.array([ids, ids]), **some) == [said, said]
    talk = Conversation((Message("user", "hi"),))
    rendered, _ = published.template.render(TOKENIZER, talk.messages, reply=True)
    assert "".join(published.stream(talk, **some)) == published.generate([rendered], **some)[0]
    wrong: list[tuple[Any, str]] = [
        ([[999]], "token id 999 is not in the"), ([[]], "the prompt is empty"), ([1, 2], r"write \[prompt\]"),
    ]  # fmt: skip
    for prompts, why in wrong:
        with pytest.raises(InputError, match=why):
            published.generate(prompts, **some)


def test_a_prompt_that_spells_special_tokens_is_text_and_that_is_said_once(published):
    told, some = [], dict(max_tokens=6, temperature=0.0)
    published.warn = told.append
    spelt = "<|go|>hi<|end|>"
    as_text = published.generate([spelt, "<|go|>"], **some)
    assert told == [told[0]] and told[0].startswith("3 special tokens spelt in text (<|go|>, <|end|>) are read as")
    assert (
        as_text[0]
        == published.generate([published._plain(spelt)], **some)[0]
        == "".join(published.stream(spelt, **some))
    )
    assert len(told) == 1


def test_a_trusted_prompt_is_read_as_the_tokens_that_it_spells(published):
    told, some = [], dict(max_tokens=6, temperature=0.0)
    published.warn = told.append
    bos, go, end = (published.tokenizer.special[name] for name in ("<s>", "<|go|>", "<|end|>"))
    ids = [bos, go, *b"hi", end]
    for text in ("<|go|>hi<|end|>", "<s><|go|>hi<|end|>"):  # one that is spelt out does not come twice
        assert published.generate([text], special_tokens="parse", **some) == published.generate([ids], **some)
        assert "".join(published.stream(text, special_tokens="parse", **some)) == published.generate([ids], **some)[0]
    assert published.generate(["hi"], special_tokens="parse", **some) == published.generate(["hi"], **some) and not told
    for call in (published.generate, published.stream):
        with pytest.raises(InputError, match="special_tokens must be 'text' or 'parse'"):
            call(["a"], special_tokens="yes")
