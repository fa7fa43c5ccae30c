from types import SimpleNamespace
from typing import Any

from llm_jax.core.tables import InputError
from llm_jax.data.documents import Conversation
from llm_jax.text.chat import Message
from llm_jax.training.report import SampledConversations


def test_a_question_that_leaves_no_room_for_a_reply_is_told_and_the_others_go_on():
    def reply(said, **_):
        if "long" in said[-1].content:
            raise InputError("the latest message alone leaves no room")
        return iter(["fine", ", thanks"])

    asked = [Conversation((Message("user", text),)) for text in ("so long " * 9, "how are you?")]
    finished: Any = SimpleNamespace(lm=SimpleNamespace(reply=reply), documents=lambda split: asked)
    lines = SampledConversations(turns=1)(finished).lines
    assert "  (no reply: the latest message alone leaves no room)" in lines
    assert lines[-2:] == ["  person  how are you?", "  model   fine, thanks"]
