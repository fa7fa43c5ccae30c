"""Generation in batches: limits, ends, seeds, compiled shapes, and stop strings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.errors import InputError
from llm_jax.inference import generate
from llm_jax.inference.generate import Generation, Writer, prepare, room, row_keys
from llm_jax.inference.sampling import Sampler, Sampling
from llm_jax.layers.cache import Cache
from llm_jax.layers.masks import Causal, Full, Prefix, SlidingWindow
from llm_jax.layers.positions import Learned, NoPositions
from llm_jax.models.stack import unstack
from llm_jax.text.recipes import Bytes

WARM = Sampling(temperature=1.5, top_k=30, top_p=0.95, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.decoder(tiny.attention())


@pytest.fixture(scope="module")
def params(tiny, model):
    return tiny.initial(model)


def test_a_row_says_what_it_would_say_alone(tiny, model, params):
    prompts = tiny.prompts(3, 9, 1)
    together = tiny.cached(model, params, prompts, 12, WARM, seed=5)
    alone = [tiny.cached(model, params, [p], 12, WARM, seed=5, rows=[row])[0] for row, p in enumerate(prompts)]
    assert together == alone


def test_seeds_and_rows_differ_and_repeat(tiny, model, params):
    same = tiny.prompts(4) * 3
    first = tiny.cached(model, params, same, 12, WARM, seed=1)
    assert first == tiny.cached(model, params, same, 12, WARM, seed=1)
    assert len({tuple(t) for t in first + tiny.cached(model, params, same, 12, WARM, seed=2)}) == 6


@pytest.mark.parametrize("most", [1, 5])
def test_pieces_make_the_same_text(tiny, model, params, most):
    prompts = tiny.prompts(3, 9, 1)
    whole = tiny.cached(model, params, prompts, 12, WARM, seed=5)
    assert tiny.cached(model, params, prompts, 12, WARM, seed=5, most=most) == whole


def test_more_tokens_than_one_call_makes(tiny):
    model = tiny.decoder(tiny.attention(), positions=NoPositions(), context=0)  # no bound
    params, prompts = tiny.initial(model), tiny.prompts(2, 3)
    texts = tiny.cached(model, params, prompts, 2 * generate.CHUNK + 3)
    assert [len(text) for text in texts] == [2 * generate.CHUNK + 3] * 2


def test_a_stop_token_ends_its_row_and_is_left_out(tiny, model, params):
    prompts = tiny.prompts(3, 9, 1)
    whole = tiny.cached(model, params, prompts, 12, WARM, seed=5)
    stop = whole[0][6]
    cut = tiny.cached(model, params, prompts, 12, WARM, seed=5, stops=[stop])
    assert cut == [text[: text.index(stop)] if stop in text else text for text in whole]
    assert cut[0] != whole[0]


def test_log_probabilities_of_what_was_drawn(tiny, model, params):
    """At a temperature, among the tokens that may be drawn; the token that ends a text has one too. Draws stay."""
    prompts, free, never = tiny.prompts(3, 9, 1), Sampling(1.5), [2, 30]
    settings: Any = dict(max_tokens=12, sampler=free, vocabulary=50, dtype="float32", never=never)
    ready, key_B = prepare(model, params, "float32"), row_keys(7, [0, 1, 2])
    scored = jax.jit(lambda tokens_BT: model.apply({"params": params}, tokens_BT)[0])
    texts = []
    for stops in ((), None):
        stops = [texts[0][0][5]] if stops is None else stops
        generation = Generation(model, ready, prompts, stops=stops, key_B=key_B, logps_at=1.5, **settings)
        texts.append([[], [], []])
        while not generation.finished:
            for row, new in enumerate(generation.advance(4)):
                texts[-1][row] += new
        for row, text in enumerate(texts[-1]):
            ended = int(generation.end_B[row] >= 0)
            whole = [*prompts[row], *text, *[int(generation.end_B[row])] * ended]
            padded = np.zeros((1, 24), np.int32)  # of one length: one program is compiled
            padded[0, : len(whole)] = whole
            score_TV = np.asarray(scored(padded), np.float64)[0, : len(whole), :50] / 1.5
            score_TV[:, never] = -np.inf
            log_TV = score_TV - np.log(np.exp(score_TV).sum(-1, keepdims=True))
            wanted = [log_TV[i - 1, whole[i]] for i in range(len(prompts[row]), len(whole))]
            assert len(wanted) == len(text) + ended
            np.testing.assert_allclose(generation.logps[row], wanted, atol=2e-5)
        assert (generation.end_B >= 0).any() == bool(stops)
    plain = Generation(model, ready, prompts, stops=[], key_B=key_B, **settings)
    said = [plain.advance(4) for _ in range(4)]
    assert [[i for part in said for i in part[row]] for row in range(3)] == texts[0] and plain.logps == [[], [], []]


def test_the_loop_ends_with_the_last_open_row(tiny, model, params):
    (text,) = tiny.cached(model, params, tiny.prompts(3), 40)
    generation = Generation(
        model, prepare(model, params, "float32"), tiny.prompts(3), max_tokens=40, sampler=tiny.GREEDY,
        key_B=row_keys(0, [0]), stops=[text[4]], vocabulary=tiny.VOCABULARY, dtype="float32",
    )  # fmt: skip
    generation.advance()
    generation.advance()
    assert generation.finished
    assert int(generation._rows.made) == text.index(text[4]) + 1  # the device stopped there too


def test_a_closed_row_says_nothing_more(tiny, model, params):
    prompts = tiny.prompts(3, 9, 1)
    generation = Generation(
        model, prepare(model, params, "float32"), prompts, max_tokens=12, sampler=WARM, key_B=row_keys(5, range(3)),
        stops=(), vocabulary=tiny.VOCABULARY, dtype="float32",
    )  # fmt: skip
    generation.advance()
    generation.close(1)
    assert [len(new) for new in generation.advance(4)] == [4, 0, 4]


def test_ids_beyond_the_tokenizer_are_never_drawn(tiny, model, params):
    generation = Generation(
        model, prepare(model, params, "float32"), [[0]], max_tokens=30, sampler=Sampling(temperature=50.0),
        key_B=row_keys(0, [0]), stops=(), vocabulary=3, dtype="float32",
    )  # fmt: skip
    drawn = set()
    while not generation.finished:
        drawn.update(generation.advance()[0])
    assert drawn == {0, 1, 2}


def test_tokens_never_drawn(tiny, model, params):
    for sampling in (tiny.GREEDY, WARM):
        whole = tiny.cached(model, params, tiny.prompts(3), 20, sampling)[0]
        generation = Generation(
            model, prepare(model, params, "float32"), tiny.prompts(3), max_tokens=20, sampler=sampling,
            key_B=row_keys(0, [0]), stops=(), never=set(whole), vocabulary=tiny.VOCABULARY, dtype="float32",
        )  # fmt: skip
        drawn = set()
        while not generation.finished:
            drawn.update(generation.advance()[0])
        assert drawn and not drawn & set(whole)


def test_as_many_as_the_context_has_room_for(tiny, model, params):
    prompts = tiny.prompts(3, 30, 63)
    texts = tiny.cached(model, params, prompts, None)
    assert [len(text) for text in texts] == [61, 34, 1]
    assert texts[0] == tiny.cached(model, params, prompts[:1], 61)[0]  # whoever else is in the batch
    with pytest.raises(InputError, match="shorten it to at most 63"):
        tiny.cached(model, params, tiny.prompts(64), None)


def test_each_text_may_have_a_limit_of_its_own_up_to_a_token_that_is_not_read(tiny):
    """As many as a row of data teaches: the last token of a row is a target, and never read."""
    model = tiny.decoder(tiny.attention(), positions=Learned(length=20), context=0)
    params, prompts = tiny.initial(model), tiny.prompts(12, 20, 5)
    most = [room(model, prompt) for prompt in prompts]
    assert most == [9, 1, 16] and room(model, tiny.prompts(21)[0]) == 0 == room(model, [])
    texts = tiny.cached(model, params, prompts, most)
    for prompt, text, count in zip(prompts, texts, most, strict=True):
        assert [text] == tiny.uncached(model, params, [[*prompt]], count)
    assert tiny.cached(model, params, prompts, [3, 1, 2]) == [texts[0][:3], texts[1], texts[2][:2]]
    with pytest.raises(InputError, match=r"prompt 0 .* max_tokens=10 .* context of 20: ask for at most 9 tokens"):
        tiny.cached(model, params, prompts, [10, 1, 16])
    with pytest.raises(InputError, match="max_tokens has 2 numbers for 3 prompts"):
        tiny.cached(model, params, prompts, [1, 1])
    assert room(tiny.decoder(tiny.attention(), context=0), prompts[0]) is None


def slots(generation: Generation) -> set[int]:
    caches = jax.tree.leaves(generation._caches, is_leaf=lambda node: isinstance(node, Cache))
    return {cache.k_BKSH.shape[-2] for cache in caches}


def begin(model: Any, params: Any, prompts: list[list[int]], max_tokens: int | None, sampler: Sampler) -> Generation:
    return Generation(
        model, prepare(model, params, "float32"), prompts, max_tokens=max_tokens, sampler=sampler,
        key_B=row_keys(0, range(len(prompts))), stops=(), vocabulary=model.words(), dtype="float32",
    )  # fmt: skip


def test_a_long_context_costs_nothing_before_it_is_written(tiny):
    model = tiny.decoder(tiny.attention(), context=40_960)
    params = tiny.initial(model)
    for max_tokens, expected in ((None, 640), (4_000, 640), (300, 320)):  # what is small is there at once
        assert slots(begin(model, params, tiny.prompts(3), max_tokens, tiny.Best())) == {expected}


@pytest.mark.parametrize(("run", "windows"), [("loop", (4, 40)), ("scan", (40,))])
def test_caches_grow_as_a_text_does(tiny, monkeypatch, run, windows):
    """One is of all tokens; one that is longer than its window at first is left alone, and one rolls once it is."""
    masks = (Causal(), *map(SlidingWindow, windows))
    model = tiny.decoder(*(tiny.attention(mask=mask) for mask in masks), run=run, context=100)
    params, prompts = tiny.initial(model), tiny.prompts(3, 9)  # padded on the left
    whole = tiny.cached(model, params, prompts, None, tiny.Best())
    assert list(map(len, whole)) == [97, 91]
    monkeypatch.setattr(generate, "ROOM", 1)
    generation, texts, sizes = begin(model, params, prompts, None, tiny.Best()), [[], []], []
    while not generation.finished:
        for text, new in zip(texts, generation.advance(7), strict=True):
            text += new
        if (now := slots(generation)) not in sizes[-1:]:
            sizes.append(now)
    assert texts == whole
    assert sizes == [{total, *(min(total, window) for window in windows)} for total in (32, 64, 128)]


def test_a_model_that_sees_what_is_not_written_is_refused(tiny):
    full, prefix = (tiny.decoder(tiny.attention(), tiny.attention(mask=mask)) for mask in (Full(), Prefix(4)))
    with pytest.raises(InputError, match=r"pattern.1.attention.mask=Full\(\) lets a token see .* use Causal"):
        tiny.cached(full, tiny.initial(full), tiny.prompts(3))
    with pytest.raises(InputError, match="the prompt has 3 tokens, but the model reads the first 4 of a text at once"):
        tiny.cached(prefix, tiny.initial(prefix), tiny.prompts(3))


def test_nearby_lengths_and_other_settings_compile_nothing(tiny, model, params):
    tiny.cached(model, params, tiny.prompts(3), 9)
    programs: tuple[Any, ...] = (generate._read, generate._go_on, generate._draw)
    before = [program._cache_size() for program in programs]
    tiny.cached(model, params, tiny.prompts(11), 5, WARM, seed=3, stops=[1, 2])
    assert [program._cache_size() for program in programs] == before


def test_learned_positions_may_be_used_to_the_last(tiny):
    model = tiny.decoder(tiny.attention(), positions=Learned(length=20), context=0)  # 20 is no power of two
    params, prompts = tiny.initial(model), tiny.prompts(12)
    assert tiny.cached(model, params, prompts) == tiny.uncached(model, params, prompts)
    with pytest.raises(InputError, match=r"max_tokens=9 .* context of 20: ask for at most 8 tokens"):
        tiny.cached(model, params, prompts, 9)


def test_a_scanned_stack_is_prepared_as_it_is(tiny):
    model = tiny.decoder(tiny.attention(), repeats=2, run="scan")
    params = tiny.initial(model)
    assert jax.tree.structure(prepare(model, params, "bfloat16")) == jax.tree.structure(params)
    assert prepare(model, params, "bfloat16")["embed"]["table"].dtype == "bfloat16"


def test_a_looped_stack_is_prepared_without_a_copy(tiny):
    def spans(tree: Any) -> list[tuple[int, int]]:
        return [(x.unsafe_buffer_pointer(), x.unsafe_buffer_pointer() + x.nbytes) for x in jax.tree.leaves(tree)]

    model = tiny.decoder(tiny.attention(), tiny.attention(), repeats=3)
    params = tiny.initial(model)
    expected = [*map(np.array, jax.tree.leaves([params["embed"], unstack(params["stack"]["layers"])]))]
    ready, held = prepare(model, params, "float32"), spans(params)
    assert all(any(first <= start and stop <= last for first, last in held) for start, stop in spans(ready))
    del params  # the views keep what they are of
    found = jax.tree.leaves([ready["embed"], list(ready["stack"]["layers"])])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "message"),
    [
        ((0,), 8, "the prompt is empty"),
        ((3, 0), 8, "prompt 1 is empty"),
        ((3,), 0, "max_tokens must be 1 or more, not 0"),
        ((3, 60), 8, "prompt 1 has 60 tokens, and with max_tokens=8 that is more than the model's context of 64: "
                     "ask for at most 4"),
        ((70,), 8, "shorten it to at most 63"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(tiny, model, params, lengths, max_tokens, message):
    with pytest.raises(InputError, match=message) as refused:
        tiny.cached(model, params, tiny.prompts(*lengths), max_tokens)
    assert "\n" not in str(refused.value)


@given(text=st.text("abé", max_size=30), stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_cuts_the_text_wherever_tokens_split(text, stop):
    tokenizer = Bytes().train([])
    writer = Writer(tokenizer.stream(), stop)
    said = ""
    for token in tokenizer.encode(text):
        said += writer.push([token])
        assert not any(s in said for s in stop)
        assert text.startswith(said)
    found = writer.stopped
    said += writer.flush()
    # of all the stop strings, the one that is complete first ends the text
    ends = [text.index(s) + len(s) for s in stop if s in text]
    assert found == bool(ends)
    if ends:
        first = min(ends)
        assert said == text[: min(text.index(s) for s in stop if s in text and text.index(s) + len(s) == first)]
    else:
        assert said == text


def test_row_keys_depend_on_the_row_alone():
    data = jax.random.key_data
    np.testing.assert_array_equal(data(row_keys(7, [0, 1, 2]))[2], data(row_keys(7, [2]))[0])
    assert (data(row_keys(7, [0])) != data(row_keys(7 + 2**32, [0]))).any(), "all bits of the seed count"


def test_a_sampler_that_draws_what_is_masked_is_refused(tiny, model, params):
    """One of the three best, where only two are not masked."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class ThirdBest(Sampler):
        def draw(self, key_B, logits_BV, seen_BV):
            return jax.lax.top_k(logits_BV, 3)[1][:, 2].astype(jnp.int32)

    settings: Any = dict(max_tokens=3, sampler=ThirdBest(), key_B=row_keys(0, [0]), stops=(), dtype="float32")
    prepared = prepare(model, params, "float32")
    never = range(2, tiny.VOCABULARY)
    masked = Generation(model, prepared, [[1, 2]], vocabulary=tiny.VOCABULARY, never=never, **settings)
    with pytest.raises(InputError, match=r"ThirdBest\.draw\(\) returned 'token \d+' .*whose logit is not -infinity"):
        masked.advance()
    free = Generation(model, prepared, [[1, 2]], vocabulary=tiny.VOCABULARY, **settings)
    assert len(free.advance()[0]) == 1
