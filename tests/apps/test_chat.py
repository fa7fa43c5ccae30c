"""The terminal chat through a pipe: turns, commands, stopping an answer, what is remembered."""

import io
import sys
from typing import Any

import pytest

from llm_jax.apps.chat import HELP, chat, printable
from llm_jax.core.errors import InputError
from llm_jax.inference.sampling import Sampling
from llm_jax.text.chat import Message


class Scripted:
    """Stands for a language model: says what it was asked, and keeps how it was asked."""

    context = 64
    warn: Any

    def __init__(self, room: int = 99):
        self.asked, self.settings, self.room = [], [], room

    def reply(self, messages, max_tokens=None, **settings):
        if len(messages[-1].content) > 40:
            raise InputError("the latest message is too long")
        if len(messages) > self.room:
            self.warn("forgetting")
        self.asked.append(messages)
        self.settings.append(settings | {"max_tokens": max_tokens})
        yield "you said "
        if messages[-1].content == "stop":
            raise KeyboardInterrupt
        yield messages[-1].content


@pytest.fixture
def say(monkeypatch, capsys):
    def say(lm, lines, **settings):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        chat(lm, **settings)
        return capsys.readouterr().out

    return say


def test_one_line_is_one_turn(say):
    lm = Scripted()
    assert say(lm, "hi\n\n there \n", system="be kind") == "you said hi\nyou said there\n"
    assert lm.asked[1] == [
        Message("system", "be kind"),
        Message("user", "hi"),
        Message("assistant", "you said hi"),
        Message("user", "there"),
    ]


def test_settings_reach_the_model_and_each_turn_has_a_seed(say):
    lm = Scripted()
    say(lm, "a\nb\n", sampling=Sampling(temperature=0.5, top_k=3), max_tokens=7, seed=10)
    assert [s["seed"] for s in lm.settings] == [10, 11]
    say(lm, "a\nb\n", seed=2**63 - 1)
    assert [s["seed"] for s in lm.settings[2:]] == [2**63 - 1, 0], "the last seed that there is"
    with pytest.raises(InputError, match=r"seed must be a whole number from 0 to 2\^63 - 1, not 9223372036854775808"):
        say(lm, "a\n", seed=2**63)
    assert lm.settings[0]["temperature"] == 0.5
    assert lm.settings[0]["top_k"] == 3
    assert lm.settings[0]["max_tokens"] == 7
    with pytest.raises(InputError, match="top_p"):
        say(lm, "", sampling=Sampling(top_p=2.0))


def test_commands(say):
    lm = Scripted()
    out = say(lm, "hi\n/help\n/reset\n/rest now\nagain\n/quit\nnever\n", system="s")
    assert HELP in out
    assert "no command '/rest': did you mean '/reset'?" in out
    assert [m.content for m in lm.asked[-1]] == ["s", "again"]
    assert "never" not in out


def test_an_answer_that_was_stopped_is_kept_as_far_as_it_got(say):
    lm = Scripted()
    assert say(lm, "stop\nhi\n") == "you said  (stopped)\nyou said hi\n"
    assert [m.content for m in lm.asked[1]] == ["stop", "you said ", "hi"]


def test_a_message_that_does_not_fit_is_refused_and_nothing_lost(say):
    lm = Scripted()
    out = say(lm, f"hi\n{'x' * 50}\nagain\n")
    assert out == "you said hi\nthe latest message is too long\nyou said again\n"
    assert [m.content for m in lm.asked[-1]] == ["hi", "you said hi", "again"]


def test_what_the_model_warns_of_is_noted(say):
    assert say(Scripted(room=1), "a\nb\n") == "you said a\n(forgetting)\nyou said b\n"


def test_what_a_terminal_would_obey_is_shown():
    assert printable("a\x1b[2Jb\tç\n\u3000\x9b") == "a\N{REPLACEMENT CHARACTER}[2Jb\tç\n\u3000\N{REPLACEMENT CHARACTER}"


def test_what_is_not_utf_8_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(InputError, match="must be UTF-8, and byte 0xff is not"):
        model: Any = Scripted()
        chat(model)
