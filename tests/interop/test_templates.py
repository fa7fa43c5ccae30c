"""Chat templates as they are published: the tokens of `transformers`, what is learnt, and no forged turns."""

import json
import shutil

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core import serialization
from llm_jax.core.errors import InputError
from llm_jax.interop.tokenizers.export import export_tokenizer
from llm_jax.interop.tokenizers.import_ import import_tokenizer
from llm_jax.text import Alpaca, Bpe, ChatML, ChatTemplate, Jinja, Llama3, Message
from llm_jax.text.prompts import parse
from llm_jax.text.special import ROLES

SMOLLM = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are helpful<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Date: " + "26 Jul 2024" + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{ content }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {{- '<tool_call>\\n' + call.name + '</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + message['content'] | trim + eos_token }}{% else %}{{ raise_exception('Only user and assistant') }}\
{% endif %}{% endfor %}"""

LLAMA2 = (
    MISTRAL.replace("' [/INST]'", "' [/INST] '")
    .replace("{{ bos_token }}", "")
    .replace("'[INST] '", "bos_token + '[INST] '")
)

PHI3 = """\
{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

SOURCES = dict(smollm=SMOLLM, llama3=LLAMA3, qwen=QWEN, gemma=GEMMA, mistral=MISTRAL, llama2=LLAMA2, phi3=PHI3)
END = dict(
    smollm="<|im_end|>", llama3="<|eot_id|>", qwen="<|im_end|>", gemma="<end_of_turn>", mistral="</s>", llama2="</s>",
    phi3="<|end|>",
)  # fmt: skip
every = pytest.mark.parametrize("kind", SOURCES)
content = st.one_of(st.text(min_size=1, max_size=20), st.sampled_from([" the ", "\n\nx\n", "[INST", "\n", "é ▁ 12"]))


@pytest.fixture(scope="module")
def chats(published, tmp_path_factory):
    """By kind: our tokenizer, our template, and the tokenizer of `transformers`."""
    made = {}
    for kind, source in SOURCES.items():
        folder = tmp_path_factory.mktemp("chat") / kind
        shutil.copytree(published[kind], folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": source}]
        settings["chat_template"] = named if kind == "gemma" else source
        if kind == "mistral":
            (folder / "chat_template.jinja").write_text(source)
            del settings["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        made[kind] = (*import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))
    return made


def theirs_of(theirs, messages, reply):
    return theirs.apply_chat_template(
        [dict(role=m.role, content=m.content) for m in messages], add_generation_prompt=reply, return_dict=False
    )


@every
@given(contents=st.lists(content, min_size=1, max_size=5), reply=st.booleans())
def test_a_conversation_has_the_tokens_of_transformers(chats, kind, contents, reply):
    ours, template, theirs = chats[kind]
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    ids, learn = template.render(ours, messages, reply)
    assert ids == theirs_of(theirs, messages, reply)
    assert len(learn) == len(ids)


@pytest.mark.parametrize("kind", ["smollm", "llama3", "qwen", "phi3"])
def test_a_system_message_and_tools(chats, kind):
    ours, template, theirs = chats[kind]
    roles = ("system", "user", "assistant", "tool", "tool", "user") if kind == "qwen" else ("system", "user")
    messages = [Message(role, f"the {role} says") for role in roles]
    assert template.render(ours, messages, reply=True)[0] == theirs_of(theirs, messages, True)


@every
def test_what_the_assistant_says_is_learnt_and_the_end_of_its_turn(chats, kind):
    ours, template, _ = chats[kind]
    asked = [Message("user", "the first"), Message("assistant", "the answer is 42"), Message("user", "more")]
    ids, learn = template.render(ours, [*asked, Message("assistant", "x\ny")])
    runs: list[list[int]] = [[]]
    for i, learnt in zip(ids, learn, strict=True):
        if learnt:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    end = ours.special[END[kind]]
    said = [run for run in runs if run]
    assert [run[-1] for run in said] == [end, end] and ours.special["end_of_turn"] == end and end in ours.ends
    assert [ours.decode(run[:-1]).strip() for run in said] == ["the answer is 42", "x\ny"]


@every
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_no_content_forges_a_token(chats, kind, role):
    ours, template, _ = chats[kind]
    theirs = ours.special | (ours.marks if role == "user" else {})  # what a model writes, it may have written
    names = [name for name in theirs if name[0] in "<["]
    plain = [Message("user", "a"), Message("assistant", "b")]
    forged = dict(user=0, assistant=1)[role]
    expected = [i for i in template.render(ours, plain)[0] if i in ours.beside]
    for text in (
        *names,
        "".join(names),
        f"a{names[0]}b{names[-1]}c",
        "<|im_<|im_end|>end|>",
        names[-1][:-1],
        names[-1][1:],
    ):
        messages = [Message(m.role, text) if at == forged else m for at, m in enumerate(plain)]
        ids, _ = template.render(ours, messages, reply=False)
        assert [i for i in ids if i in ours.beside] == expected
        assert text in ours.decode(ids) or kind in ("gemma", "llama2")


@every
@given(pieces=st.lists(st.tuples(content, st.integers(0, 9)), max_size=4))
def test_a_trusted_prompt_has_the_tokens_of_transformers(chats, kind, pieces):
    ours, template, theirs = chats[kind]
    names = sorted(name for name in ours.special | ours.marks if name[0] in "<[")
    text = "".join(f"{text}{names[n % len(names)]}" for text, n in pieces)
    assert parse(ours, text, template) == theirs(text, add_special_tokens=False).input_ids


def test_half_a_token_of_a_content_does_not_grow_into_one(chats):
    ours, _, _ = chats["smollm"]
    closing = Jinja("{{ messages[0].content + 'end|>' }}", ("<|im_end|>",))
    assert not ours.beside & set(closing.render(ours, [Message("user", "<|im_")])[0])


def test_a_template_that_refuses_says_why(chats):
    ours, template, _ = chats["gemma"]
    with pytest.raises(InputError, match="cannot write this conversation: System role not supported"):
        template.render(ours, [Message("system", "a"), Message("user", "b")])
    with pytest.raises(InputError, match="line 2 of the chat template is no Jinja"):
        Jinja("\n{% if %}").render(ours, [Message("user", "a")])
    with pytest.raises(InputError, match="cannot write this conversation"):
        Jinja("{{ ''.__class__.__mro__[1].__subclasses__() }}").render(ours, [])
    with pytest.raises(InputError, match=r"special token '<\|im_start\|>', which this tokenizer lacks"):
        chats["smollm"][1].render(ours, [Message("user", "a")])


def test_what_is_rewritten_is_learnt_as_it_is_written(chats):
    ours, template, theirs = chats["qwen"]
    messages = [Message("user", "a"), Message("assistant", "hm</think>\n\nyes"), Message("user", "b")]
    assert template.render(ours, messages, reply=True)[0] == theirs_of(theirs, messages, True)
    ids, learn = template.render(ours, messages)
    found = theirs.apply_chat_template(
        [dict(role=m.role, content=m.content) for m in messages], return_dict=True, return_assistant_tokens_mask=True
    )
    assert (ids, [int(learnt) for learnt in learn]) == (found["input_ids"], found["assistant_masks"])
    assert ours.decode([i for i, learnt in zip(ids, learn, strict=True) if learnt]) == "yes"


@every
def test_a_template_survives_the_manifest_and_export(chats, kind, tmp_path):
    ours, template, _ = chats[kind]
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(template)))) == template
    export_tokenizer(ours, template, tmp_path)
    again, same = import_tokenizer(tmp_path)
    messages = [Message("user", " a\n"), Message("assistant", "b")]
    assert same == template and again.ends == ours.ends
    assert same.render(again, messages) == template.render(ours, messages)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs_of(theirs, messages, True) == template.render(ours, messages, reply=True)[0]


@pytest.mark.parametrize(("kind", "template"), [("smollm", ChatML()), ("llama3", Llama3())])
def test_named_templates(chats, kind, template, tmp_path):
    ours = chats[kind][0]
    export_tokenizer(ours, template, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [Message(role, f" the {role}\n") for role in ROLES[:3]]
    for reply in (False, True):
        ids, learn = template.render(ours, messages, reply)
        assert theirs_of(theirs, messages, reply) == ids
        learnt = [i for i, yes in zip(ids, learn, strict=True) if yes]
        assert ours.decode(learnt).strip() == "the assistant" and learnt[-1] == ours.special[END[kind]]


@pytest.mark.parametrize("template", [ChatTemplate(), Alpaca()], ids=["ours", "alpaca"])
def test_our_own_tokenizer_and_template_are_exported(template, tmp_path):
    ours = Bpe(300).train(["ab cd\nabc d " * 20])
    export_tokenizer(ours, template, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    roles = ROLES if isinstance(template, ChatTemplate) and not isinstance(template, Jinja) else ROLES[:3]
    messages = [Message(role, f" ab {role} ") for role in roles]
    for reply in (False, True):
        assert theirs_of(theirs, messages, reply) == template.render(ours, messages, reply)[0]
