"""Pairs: each stays in one row whatever the order, only what is compared is learnt, and what is too long."""

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Comparison, Example, Preference, Rendering, Text
from llm_jax.data.packing import BestFit, ConcatThenSplit, One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import InstructionPreferences, JsonLines, Mixture, RatedConversations, RatedReplies, Source
from llm_jax.data.split import ByHash
from llm_jax.text.chat import Alpaca, ChatTemplate, Message


@dataclasses.dataclass(frozen=True)
class Numbered(Source):
    """Pairs whose texts say which pair they are of, after conversations of one turn or two."""

    count: int = 50
    seed: int = 0

    def documents(self):
        rng = np.random.default_rng(self.seed)
        for i in range(self.count):
            said = (Message("user", f"{i}" + "?" * int(rng.integers(1, 9))),)
            if i % 2:
                said = (Message("user", "a"), Message("assistant", "before"), *said)
            chosen, rejected = (f"{side}{i}" + "." * int(rng.integers(0, 9)) for side in "+-")
            yield Preference(said, chosen, rejected, i / 4 if i % 3 else None)


def data(source: Source = Numbered(), length: int = 48, **settings) -> Data:
    return dataclasses.replace(Data(source, length, 8, One(), ByHash(0.2), presentation=Pairs()), **settings)


def told(batch, length, tokenizer):
    """Per row: the texts, the replies and the margin; every array is looked at."""
    assert {name: x.shape for name, x in batch.items()} == {"margin_B": (8,)} | {
        f"{name}_BT": (8, 2 * length) for name in ("tokens", "targets", "weight", "segment", "position", "bytes")
    }
    for row in range(8):
        texts, replies = [], []
        for half in (slice(0, length), slice(length, 2 * length)):
            tokens, targets, weight, segment, position, size = (
                batch[f"{name}_BT"][row, half]
                for name in ("tokens", "targets", "weight", "segment", "position", "bytes")
            )
            count = (segment == 0).sum()
            assert np.all(segment[:count] == 0) and np.all(segment[count:] == -1)
            np.testing.assert_array_equal(position, np.where(segment == 0, np.arange(length), 0))
            np.testing.assert_array_equal(targets[: max(count - 1, 0)], tokens[1:count])
            assert not weight[max(count - 1, 0) :].any() and np.all(tokens[count:] == tokenizer.padding)
            np.testing.assert_array_equal(size[weight > 0], tokenizer.bytes_V[targets[weight > 0]])
            texts.append(tokens[:count].tolist())
            replies.append(tokenizer.decode(targets[weight > 0]))
        yield texts, replies, float(batch["margin_B"][row])


def test_a_pair_is_a_row_and_its_replies_alone_are_learnt(tokenizer):
    made = data()
    template = ChatTemplate()
    stream, seen = made.train(tokenizer, seed=0), []
    documents: Any = made.documents("train")
    train = {d.chosen: d for d in documents}
    while len(seen) < len(train):
        for texts, (chosen, rejected), margin in told(next(stream), 48, tokenizer):
            pair = train[chosen]
            assert rejected == pair.rejected and margin == (pair.margin or 0)
            for text, reply in zip(texts, (chosen, rejected), strict=True):
                assert text == template.render(tokenizer, (*pair.messages, Message("assistant", reply)))[0]
            if len(seen) < len(train):
                seen.append(chosen)
    assert sorted(seen) == sorted(train), "an epoch shows each once"
    held_out = [reply for b in made.evaluation(tokenizer) for _, (reply, _), _ in told(b, 48, tokenizer) if reply]
    documents = made.documents("validation")
    assert held_out == [d.chosen for d in documents]


def test_resuming_processes_and_mixtures_keep_pairs(tokenizer):
    made = data(Mixture((Numbered(20, 1), Numbered(30, 2)), (1.0, 2.0)))
    stream = made.train(tokenizer, seed=3)
    whole = [next(stream) for _ in range(9)]
    resumed = made.train(tokenizer, seed=3)
    resumed.restore({**stream.save(), "batches": 5})
    np.testing.assert_equal(next(resumed), whole[5])
    halves = [made.train(tokenizer, seed=3, process=i, processes=2) for i in range(2)]
    both = [next(half) for half in halves]
    np.testing.assert_equal({k: np.concatenate([b[k] for b in both]) for k in both[0]}, whole[0])
    for batch in whole:
        for _, (chosen, rejected), _ in told(batch, 48, tokenizer):
            assert chosen[0] == "+" and chosen[1:].rstrip(".") == rejected[1:].rstrip(".")


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """These pairs to train on, and one that is short held out."""

    pairs: tuple[Any, ...]

    def documents(self):
        return iter(self.pairs)

    def validation(self):
        return iter([Preference((), "x", "y")])


def cut(tokenizer, length: int, *pairs: Any, **settings: Any) -> list[tuple[list[str], list[str]]]:
    """Texts, with special tokens by name, and replies of each pair of an epoch, as rows show them."""
    names = {i: f"<{name}>" for name, i in tokenizer.special.items()}
    made = data(Given(pairs), length, packing=One("truncate"), shuffle=False, **settings)
    rows = told(next(made.train(tokenizer, seed=0)), length, tokenizer)
    shown = [(["".join(names.get(i) or chr(i) for i in ids) for ids in texts], replies) for texts, replies, _ in rows]
    return shown[: len({str(row) for row in shown})]


def test_what_is_too_long_keeps_who_speaks_and_loses_the_beginning_of_what_is_said(tokenizer):
    """And then the end of a longer reply, which has no token that ends it there."""
    pair = Preference((Message("user", "0123456789"),), "abc", "abcdef")
    for length in (20, 17, 14, 11):  # of 21 tokens; 10 are said
        asked = "0123456789"[21 - length :]
        (row,) = cut(tokenizer, length, pair)
        before = f"<bos><user>{asked}<end_of_turn><assistant>"
        assert row == ([f"{before}{reply}<end_of_turn>" for reply in ("abc", "abcdef")], ["abc", "abcdef"])
    (row,) = cut(tokenizer, 8, pair)
    opening = "<bos><user><end_of_turn><assistant>"
    assert row == ([f"{opening}abc<end_of_turn>", f"{opening}abcd"], ["abc", "abcd"])
    with pytest.raises(InputError, match=r"1 of 1 pairs have a text that is too long .*longest has 21 tokens"):
        data(Given((pair,)), 16).train(tokenizer, seed=0)


def test_the_oldest_turns_go_first_and_the_system_stays(tokenizer):
    said = (
        Message("system", "sys"), Message("user", "aaaa"), Message("assistant", "bbbb"), Message("user", "ccccé"),
    )  # fmt: skip
    opening = "<bos><system>sys<end_of_turn>"
    for length, kept in (
        (99, "<user>aaaa<end_of_turn><assistant>bbbb<end_of_turn><user>cccc\xc3\xa9<end_of_turn>"),
        (19, "<user>cccc\xc3\xa9<end_of_turn>"),
        (18, "<user>ccc\xc3\xa9<end_of_turn>"),
        (14, "<user><end_of_turn>"),  # no half of a character is left
    ):
        (row,) = cut(tokenizer, length, Preference(said, "yes", "n"))
        assert row[0] == [f"{opening}{kept}<assistant>{reply}<end_of_turn>" for reply in ("yes", "n")]


def test_any_template_has_its_opening_and_an_input_gives_way_before_its_instruction(tokenizer):
    asked = Message.asked("Add.", "0123456789")
    rendering = Rendering(template=Alpaca())
    whole = len(Preference((asked,), "yes", "no").parts(tokenizer, rendering)[0][0])
    for lost, left in ((4, Message.asked("Add.", "456789")), (14, Message.asked("Add."))):
        pair = Preference((asked,), "yes", "no")
        made = data(Given((pair,)), whole - lost, packing=One("truncate"), rendering=rendering)
        assert made.shortened(pair, tokenizer) == Preference((left,), "yes", "no")
        (texts, replies, _), *_ = told(next(made.train(tokenizer, seed=0)), whole - lost, tokenizer)
        assert texts == [ids for ids, _ in Preference((left,), "yes", "no").parts(tokenizer, rendering)]
        assert [reply.strip() for reply in replies] == ["yes", "no"]


def test_pairs_that_are_the_same_as_they_are_cut_are_left_out_and_counted(tokenizer, caplog):
    asked = (Message("user", "q"),)
    same = Preference(asked, "abcdefgh-yes", "abcdefgh-no")
    alike = Preference(asked, "a", "a")
    both = Comparison((Message("user", "hello there"),), (Message("user", "hello thEre"),), 1.0)
    unsaid = Preference((Message("system", "0123456789"), *asked), "a", "b")
    kept = Preference(asked, "xy", "yx", 2.0)
    rows = cut(tokenizer, 10, same, kept, both, alike, unsaid)
    assert [replies for _, replies in rows] == [["xy", "yx"]]
    told_once = "4 of 5 pairs are left out: both texts are the same in rows of data.length=10"
    assert caplog.messages == [told_once]
    caplog.clear()
    shown = data(Given((kept, alike)), 10, shuffle=False).train(tokenizer, seed=0)
    assert {*next(shown)["margin_B"].tolist()} == {2.0} and caplog.messages[0].startswith("1 of 2 pairs are left out")
    with pytest.raises(InputError, match=r"none of 2 pairs has anything .* data.length=10: raise it"):
        cut(tokenizer, 10, same, unsaid)


def test_a_comparison_learns_all_of_both(tokenizer):
    pair = Comparison((Message("user", "hi"),), (Message("user", "go"), Message("assistant", "no")), 2.0)
    parts = pair.parts(tokenizer, Rendering(learn="answers"))
    assert [len(ids) for ids, _ in parts] == [5, 9] and all(all(learnt) for _, learnt in parts)


def test_only_the_last_reply_is_learnt_by_any_template(tokenizer):
    said = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    for template in (ChatTemplate(), Alpaca()):
        parts = Preference(said, "yes", "no").parts(tokenizer, Rendering(template=template))
        for (ids, learnt), reply in zip(parts, ("yes", "no"), strict=True):
            assert tokenizer.decode([i for i, wanted in zip(ids, learnt, strict=True) if wanted]).strip() == reply


def test_what_is_refused(tokenizer):
    for packing in (BestFit("refuse"), ConcatThenSplit(), One("split")):
        with pytest.raises(InputError, match=r"texts of a pair in a row of their own, which data.packing="):
            data(packing=packing).train(tokenizer, seed=0)

    @dataclasses.dataclass(frozen=True)
    class Other(Source):
        def documents(self):
            yield Example("a", "b")
            yield Text("c")

    with pytest.raises(InputError, match=r"needs pairs to compare .*not a (Example|Text)"):
        data(Other()).train(tokenizer, seed=0)
    with pytest.raises(InputError, match="rejected reply of a preference is blank"):
        Preference((), "a", " ")

    @dataclasses.dataclass(frozen=True)
    class Unsaid(Preference):
        def parts(self, tokenizer, rendering):
            return [(ids, [False] * len(ids)) for ids, _ in super().parts(tokenizer, rendering)]

    @dataclasses.dataclass(frozen=True)
    class Nothing(Source):
        def documents(self):
            yield from Numbered(9).documents()
            yield Unsaid((), "a", "b")

        def validation(self):
            return Numbered(3).documents()

    with pytest.raises(InputError, match="1 of 10 pairs have a text with nothing in it to compare"):
        data(Nothing()).train(tokenizer, seed=0)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "?"}]
    records = [
        {"prompt": "hi", "chosen": "a", "rejected": "b"},
        {"messages": said, "chosen": "a", "rejected": "b", "margin": 2},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    found = list(JsonLines(str(path)).documents())
    asked = (Message("user", "hi"), Message("assistant", "yo"), Message("user", "?"))
    assert found == [Preference(asked[:1], "a", "b"), Preference(asked, "a", "b", 2.0)]
    for record, problem in (
        ({"prompt": "hi", "chosen": "", "rejected": "b"}, "a.jsonl:1: the chosen reply of a preference is blank"),
        ({"prompt": "hi", "chosen": "a", "rejected": 3}, "a.jsonl:1: the field 'rejected' must be text, not '3'"),
        ({"chosen": "a", "rejected": "b"}, "a.jsonl:1: the field 'prompt' must be text, not 'None'"),
        ({"prompt": "", "chosen": "a", "rejected": "b", "margin": "x"}, "a.jsonl:1: 'margin' must be a number"),
        ({"prompt": "", "chosen": "a", "rejected": "b", "margin": 10**400}, "a.jsonl:1: 'margin' must be a number"),
        ({"prompt": "", "chosen": "a", "rejected": "b", "tools": [{}]}, "a.jsonl:1: .* have no place for 'tools'"),
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match=problem):
            list(JsonLines(str(path)).documents())


def test_rated_conversations():
    source = RatedConversations()
    train: Any = list(source.documents())
    held_out: Any = list(source.validation())
    both = [{d.chosen for d in pairs} | {d.rejected for d in pairs} for pairs in (train, held_out)]
    assert not both[0] & both[1], "no conversation is on both sides of the split"
    assert len(held_out) > 200 and len(both[1]) == 2 * len(held_out) and len(train) > 4000
    assert all(0 < d.margin <= 9 for d in train)
    assert not any("@" in m.content and ".com" in m.content for d in train for m in d.chosen)
    assert held_out == list(source.validation())


def test_rated_conversations_that_are_matched_in_length():
    """Of conversations at random the longer is the better in three of four pairs; of these, length says nothing."""
    matched, random = RatedConversations(rounds=4, length_matched=True), RatedConversations(rounds=4)
    sides = []
    for pairs, others in (
        (list(matched.documents()), list(random.documents())),
        (list(matched.validation()), list(random.validation())),
    ):
        here, there = map(_sides, (pairs, others))
        assert len(here & there) > 0.8 * len(there), "the same conversations, paired otherwise"
        assert len(pairs) > 0.8 * len(others)
        assert np.quantile(_length_ratios(pairs), 0.9) < 1.1 < 2 < np.quantile(_length_ratios(others), 0.5)
        assert max(_length_ratios(pairs)) < 6, "the longest is not paired with the shortest"
        sides.append(here)
    assert not sides[0] & sides[1], "no conversation is on both sides of the split"


def _sides(pairs: Any) -> set[Any]:
    return {side for d in pairs for side in (d.chosen, d.rejected)}


def _length_ratios(pairs: Any) -> list[float]:
    """The longer one's characters over the shorter one's."""
    sizes = [[sum(len(m.content) for m in side) for side in (d.chosen, d.rejected)] for d in pairs]
    return [max(pair) / min(pair) for pair in sizes]


def test_instruction_preferences(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_DATA", str(tmp_path))
    (tmp_path / "instruction-data-with-preference.json").write_text("[]")
    with pytest.raises(InputError, match="is not the file expected"):
        list(InstructionPreferences().documents())


def test_ratings_of_replies_to_one_prompt_are_pairs(tmp_path):
    path = tmp_path / "rated.jsonl"
    user = {"role": "user", "content": "q0"}
    replies = [("b", 2), ("a", 1), ("c", 2), ("b", 4.5)]
    records: list[Any] = [{"prompt": "q0", "completion": text, "rating": rating} for text, rating in replies]
    records[1] = {"messages": [user, {"role": "assistant", "content": "a"}], "rating": 1}
    records.insert(1, {"prompt": "another", "completion": "d", "rating": 9})
    path.write_text("\n".join(map(json.dumps, records)))
    asked = (Message("user", "q0"),)
    wanted = [("b", "a", 1.0), ("c", "a", 1.0), ("b", "a", 3.5), ("b", "c", 2.5)]
    assert list(RatedReplies(str(path), 0.0).documents()) == [Preference(asked, *pair) for pair in wanted]
    path.write_text(json.dumps([records[1]]))
    with pytest.raises(InputError, match="has no prompt with two replies that are rated differently"):
        RatedReplies(str(path)).documents()
    for change, message in (
        ({"rating": "good"}, "record 0: 'rating' must be a number, not 'good'"),
        ({"rating": math.nan}, "record 0: 'rating' must be a number, not 'nan'"),
        ({"completion": None}, "record 0 must end with a reply of the assistant: a 'completion', or the last message"),
        ({"tools": [{}]}, "record 0 must be an object with a prompt, a completion and a rating, and no tools"),
    ):
        path.write_text(json.dumps([records[0] | change]))
        with pytest.raises(InputError, match=message):
            RatedReplies(str(path)).documents()


def test_a_prompt_is_held_out_with_all_its_replies(tmp_path, tokenizer):
    path = tmp_path / "rated.jsonl"
    records = [{"prompt": f"q{i % 50}", "completion": f"a{i}", "rating": i} for i in range(150)]
    path.write_text("\n".join(map(json.dumps, records)))
    source = RatedReplies(str(path), 0.3)
    train, held_out = list(source.documents()), list(source.validation())
    prompts = [{pair.messages[0].content for pair in pairs} for pairs in (train, held_out)]
    assert len(train) + len(held_out) == 150 and not prompts[0] & prompts[1] and 5 < len(prompts[1]) < 25
    path.write_text("\n".join(map(json.dumps, records[3:])))
    assert {pair.messages[0].content for pair in source.validation()} <= prompts[1], "others do not move a prompt"
    batch = next(Data(source, 48, 8, packing=One(), presentation=Pairs()).train(tokenizer, seed=0))
    assert {*batch["margin_B"].tolist()} <= {50.0, 100.0}


def test_pairs_of_messages_are_those_of_trl(tmp_path):
    path = tmp_path / "a.jsonl"
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    records = [
        {"prompt": prompt, "chosen": [good], "rejected": [bad]},
        {"chosen": [*prompt, good], "rejected": [*prompt, bad]},
        {"prompt": "q", "chosen": [prompt[1], good], "rejected": [prompt[1], bad]},
        {"prompt": prompt, "chosen": "yes", "rejected": "no", "margin": 2},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("trl.data_utils").maybe_extract_prompt
    for record in records[:2]:
        told = theirs(record)
        assert (told["prompt"], told["chosen"], told["rejected"]) == (prompt, [good], [bad])
    path.write_text("\n".join(map(json.dumps, records)))
    before = (Message("system", "s"), Message("user", "q"))
    found = list(JsonLines(str(path)).documents())
    assert [(p.messages, p.chosen, p.rejected) for p in found if isinstance(p, Preference)] == [
        (said, "yes", "no") for said in (before, before, before[1:], before)
    ]
    assert found[3].number == 2
    for record, message in (
        ({"chosen": [prompt[1], good], "rejected": [bad]}, "must have a beginning in common, and then a reply each"),
        ({"prompt": "q", "chosen": [good, prompt[1], good], "rejected": [bad]}, "must have a beginning in common"),
        ({"prompt": "q", "chosen": [prompt[1], prompt[0]], "rejected": [bad]}, "must be the assistant's"),
        ({"chosen": [good], "rejected": [bad]}, "must have a beginning in common"),
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match=message):
            list(JsonLines(str(path)).documents())
