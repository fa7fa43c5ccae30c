import errno
import functools
import hashlib
import http.server
import itertools
import json
import math
import os
import threading

import pytest

from llm_jax.core.errors import InputError
from llm_jax.core.serialization import build, from_json, to_json
from llm_jax.data.documents import Conversation, Example, Text
from llm_jax.data.packaged import E_MAIL, _turns
from llm_jax.data.sources import (
    SOURCES,
    ArrayRecord,
    ChatterBot,
    Conversations,
    Download,
    EnglishJapanese,
    Instructions,
    JsonLines,
    KingJames,
    Mixture,
    PlainTexts,
    PythonHelp,
    RatedReplies,
    TextFiles,
    Verses,
)
from llm_jax.text.calls import Call
from llm_jax.text.chat import Message


def listed(source):
    return list(source.documents())


@pytest.fixture
def available(tmp_path):
    """An instance of every source, made here where it needs a file or an address."""
    from array_record.python.array_record_module import ArrayRecordWriter

    text, lines, records = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "a.array_record"
    text.write_text("One.\n\nTwo.")
    lines.write_text('{"text": "One."}\n')
    rated = tmp_path / "rated.jsonl"
    rated.write_text("\n".join(f'{{"prompt": "q", "completion": "{n}", "rating": {n}}}' for n in range(3)))
    writer = ArrayRecordWriter(str(records), "group_size:1")
    for record in ("plain", '{"text": "of JSON"}', '{"prompt": "1+1=", "answer": "2"}', "{not JSON}"):
        writer.write(record.encode())
    writer.close()
    known = dict(
        TextFiles=TextFiles(str(text)),
        JsonLines=JsonLines(str(lines)),
        ArrayRecord=ArrayRecord(str(records)),
        Download=Download("http://nowhere.invalid/", hashlib.sha256(text.read_bytes()).hexdigest(), "a.txt"),
        Mixture=Mixture((PythonHelp(), TextFiles(str(text))), (1.0, 3.0)),
        PlainTexts=PlainTexts(JsonLines(str(lines))),
        RatedReplies=RatedReplies(str(rated)),
    )
    return known | {name: build(cls, [], {}, name) for name, cls in SOURCES.items() if name not in known}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_yields_the_same_each_time_and_can_be_written_down(name, available, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_DATA", str(tmp_path))
    source = available[name]
    assert from_json(to_json(source)) == source and hash(source) == hash(source)
    fetched = dict(
        TinyShakespeare="tinyshakespeare.txt", MakemoreNames="names.txt", EnglishJapanese="enja/train.en",
        GoogleAnalogies="questions-words.txt", Instructions="instruction-data.json", SmsSpam="sms_spam.tsv",
        InstructionPreferences="instruction-data-with-preference.json",
    )  # fmt: skip
    if name in fetched:
        (tmp_path / "enja").mkdir()
        (tmp_path / fetched[name]).write_text("something else")
        with pytest.raises(InputError, match="is not the file expected"):
            listed(source)
        return
    documents = listed(source)
    assert documents and documents == listed(source)
    assert all(d.text().strip() and "".join(d.strings()) for d in documents)


def test_text_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("B1\n\n \n\nB2\n")
    (tmp_path / "sub" / "c.txt").write_text("Cé", encoding="utf-8")
    (tmp_path / "d.md").write_text("not read")
    assert listed(TextFiles(str(tmp_path))) == [Text("B1\n\n \n\nB2\n"), Text("Cé")]
    assert listed(TextFiles(str(tmp_path), "\n\n")) == [Text("B1"), Text("B2\n"), Text("Cé")]
    assert listed(TextFiles(str(tmp_path / "d.md"))) == [Text("not read")]


@pytest.mark.parametrize("written", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n---\n", "\n", "."])
def test_ends_of_lines_separate_however_they_are_written(tmp_path, written, separator):
    said = [["one", "two"], ["three"], ["four", "five."]]
    text = separator.replace("\r\n", "\n").join("\n".join(lines) for lines in said) + "\n\n"
    path = tmp_path / "a.txt"
    path.write_bytes(text.replace("\n", written).encode())
    wanted = text.split(separator.replace("\r\n", "\n"))
    found = [d.text() for d in listed(TextFiles(str(path), separator))]
    assert found == [piece.replace("\n", written) for piece in wanted if piece.strip()], "and nothing else is changed"


def test_text_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no .txt file in the folder"):
        listed(TextFiles(str(tmp_path)))
    (tmp_path / "letters.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"letters.txt is not UTF-8: byte 3 is 0xe9"):
        listed(TextFiles(str(tmp_path)))
    with pytest.raises(InputError, match=r"there is no .*leters.txt: did you mean 'letters.txt'"):
        listed(TextFiles(str(tmp_path / "leters.txt")))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot read .*letters.txt: Permission denied"):
        listed(TextFiles(str(tmp_path / "letters.txt")))


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    records = [{"story": "S"}, {"messages": messages}, {"prompt": "1+1=", "answer": "2"}]
    path.write_text("\n\n".join(map(json.dumps, records)))
    said = Conversation((Message("user", "hi"), Message("assistant", "yo")))
    assert listed(JsonLines(str(path), "story")) == [Text("S"), said, Example("1+1=", "2")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', r"a.jsonl:2 is not JSON: .* at column \d+"),
        (b'{"texts": "x"}', "a.jsonl:2 has no field 'text': did you mean 'texts'"),
        (b'{"text": 3}', "a.jsonl:2: the field 'text' must be text, not '3'"),
        (b"[1]", "a.jsonl:2 is not a JSON object"),
        (b'{"text": "\xff"}', "a.jsonl:2 is not UTF-8: byte 24 is 0xff"),
        (b'{"messages": [{"role": "usr", "content": "x"}]}', "a.jsonl:2, message 0: .*did you mean 'user'"),
        (b'{"messages": [3]}', "a.jsonl:2, message 0 is not an object"),
        (b'{"messages": 3}', "a.jsonl:2: 'messages' must be a list"),
        (b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:2 cannot be read as JSON: .*digits"),
        (b'{"text": "x", "label": ""}', "a.jsonl:2: the field 'label' must be the name of a class or a number, not ''"),
        (b'{"text": "x", "label": true}', "a.jsonl:2: the field 'label' must be the name of a class or a number"),
        (b'{"text": "x", "label": NaN}', "a.jsonl:2: 'label' must be a number, not 'nan'"),
    ],
)
def test_broken_json_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"ok"}\n' + line)
    with pytest.raises(InputError, match=message) as raised:
        listed(JsonLines(str(path)))
    assert "\n" not in str(raised.value)


def test_a_list_that_is_the_whole_file(tmp_path):
    path = tmp_path / "alpaca.json"
    records = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Hi.", "output": ""}]
    path.write_text(json.dumps(records + [{"instruction": "Hi.", "input": "", "output": "Ho."}], indent=4))
    asked = ("Add.\n\n1 and 2", "3"), ("Hi.", ""), ("Hi.", "Ho.")
    said = [Conversation((Message("user", q), Message("assistant", a))) for q, a in asked]
    said[0] = Conversation((Message.asked("Add.", "1 and 2"), Message("assistant", "3")))
    assert said[0].messages[0].content == asked[0][0]
    assert listed(JsonLines(str(path))) == said
    path.write_text('[\n {"instruction": "Add.", "input": 3, "output": "x"}]')
    with pytest.raises(InputError, match=r"alpaca.json, record 0: the field 'input' must be text, not '3'"):
        listed(JsonLines(str(path)))
    path.write_text('[\n {"instruction": "Add."]')
    with pytest.raises(InputError, match=r"alpaca.json is not JSON: .* at column 24 of line 2"):
        listed(JsonLines(str(path)))


def test_prompts_alone_and_completions_are_what_is_said(tmp_path):
    path = tmp_path / "a.jsonl"
    user, system = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}
    reply = {"role": "assistant", "content": "a"}
    records = [
        {"prompt": "q"}, {"prompt": [system, user], "source": "x"}, {"messages": [user]},
        {"prompt": "q", "completion": "a"}, {"prompt": [user], "completion": [reply]}, {"prompt": "q", "answer": "a"},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, records)))
    asked, said = Message("user", "q"), Message("assistant", "a")
    assert listed(JsonLines(str(path))) == [
        Conversation((asked,)), Conversation((Message("system", "s"), asked)), Conversation((asked,)),
        Conversation((asked, said)), Conversation((asked, said)), Example("q", "a"),
    ]  # fmt: skip
    for record, message in (
        ({"messages": [user, reply], "rating": 3}, "'rating' would not be read: .*RatedReplies reads ratings"),
        ({"prompt": "q", "response": "a"}, "'response' would not be read: a reply to a prompt is its 'completion'"),
        ({"prompt": "q", "completion": "a", "label": True}, "'label' would not be read"),
        ({"prompt": "q", "messages": [user]}, "has 'messages' and a 'prompt': leave one of them out"),
        ({"prompt": "q", "completion": [user]}, "must end with a reply of the assistant"),
        ({"prompt": 3}, "the field 'prompt' must be text, not '3'"),
        ({"question": "q"}, r"has no field 'text': .*; other records are \{messages\}, \{prompt\}, "),
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match=message) as raised:
            listed(JsonLines(str(path)))
        assert "\n" not in str(raised.value)


def test_messages_with_tools_as_openai_has_them(tmp_path):
    path = tmp_path / "a.jsonl"
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call, {"name": "g", "arguments": {}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c", "tool_calls": None},
    ]
    path.write_text(json.dumps({"messages": messages, "tools": [{"name": "f"}]}))
    said = (
        Message("user", "q"), Message("assistant", "", (Call("f", '{"x": 1}'), Call("g"))), Message("tool", "a"),
        Message("tool", "b"), Message("assistant", "c"),
    )  # fmt: skip
    assert listed(JsonLines(str(path))) == [Conversation(said, ('{"name": "f"}',))]


CALL = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
ASKS = {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "c2"}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"role": "assistant"}]}, "message 0: the field 'content' must be text, not 'None'"),
        ({"messages": [ASKS | {"role": "user"}]}, "message 0: only the assistant calls tools, not the user"),
        ({"messages": [ASKS | {"tool_calls": 3}]}, "message 0: 'tool_calls' must be a list, not '3'"),
        ({"messages": [ASKS | {"tool_calls": [3]}]}, "message 0, call 0 is not an object with a function but '3'"),
        ({"messages": [ASKS | {"tool_calls": [{}]}]}, "message 0, call 0: the field 'name' must be text"),
        ({"messages": [ASKS | {"tool_calls": [{"name": "f g"}]}]}, "message 0, call 0: 'f g' is no name of a tool"),
        (
            {"messages": [ASKS | {"tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "message 0, call 0: what f is called with is no JSON",
        ),
        (
            {"messages": [ASKS, {"role": "tool", "tool_call_id": "c3", "content": ""}]},
            "message 1: no call before it waits for an answer with tool_call_id 'c3'",
        ),
        (
            {"messages": [ASKS, {"role": "tool", "tool_call_id": "c2", "content": ""}]},
            "message 1: answers must be in the order of the calls, and 'c1' is the first without one",
        ),
        ({"messages": 3}, "'messages' must be a list, not '3'"),
        ({"messages": [], "tools": [3]}, "tool 0 is not an object that describes a tool but '3'"),
        ({"instruction": "i", "outptu": "o"}, "has no field 'text'"),
    ],
)
def test_broken_calls_are_named(tmp_path, record, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"a.jsonl:1(, |: | ){message}") as raised:
        listed(JsonLines(str(path)))
    assert "\n" not in str(raised.value)


def test_array_records(available, tmp_path):
    want = [Text("plain"), Text("of JSON"), Example("1+1=", "2"), Text("{not JSON}")]
    assert listed(available["ArrayRecord"]) == want
    with pytest.raises(InputError, match="there is no "):
        listed(ArrayRecord(str(tmp_path / "nothing")))
    (tmp_path / "garbage").write_bytes(b"garbage" * 40_000)
    with pytest.raises(InputError, match="is no ArrayRecord file") as raised:
        listed(ArrayRecord(str(tmp_path / "garbage")))
    assert "\n" not in str(raised.value)


def test_the_packaged_conversations():
    documents = listed(Conversations())
    assert 7000 < len(documents) <= 7168
    for document in documents:
        assert isinstance(document, Conversation)
        roles = [message.role for message in document.messages]
        assert roles[0] == "user" and all(a != b for a, b in itertools.pairwise(roles))
        assert all(m.content and m.content == m.content.strip() for m in document.messages)
    text = "\n".join(d.text() for d in documents)
    assert 11e6 < len(text) < 13e6 and "@" in text and not E_MAIL.search(text)


def test_turns_are_merged_and_e_mail_addresses_dropped():
    said = [("x", ""), ("a", "Hi"), ("a", "you"), ("b", "yo"), ("a", "it is me@example.org"), ("b", "ok"), ("a", "bye")]
    assert list(_turns(said)) == [Message("user", "Hi\nyou"), Message("assistant", "yo\nok"), Message("user", "bye")]
    assert list(_turns([("a", "me@example.org")])) == []


def test_the_dialogues_of_chatterbot(monkeypatch):
    documents = listed(ChatterBot())
    assert len(documents) == 2025
    for document in documents:
        assert isinstance(document, Conversation) and len(document.messages) >= 2
        assert [m.role for m in document.messages[:2]] == ["user", "assistant"]
        assert all(m.content and m.content == m.content.strip() for m in document.messages)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pyyaml is not installed: pip install -e '\.\[corpora\]'"):
        listed(ChatterBot())


def test_instructions_with_their_answers(tmp_path, monkeypatch):
    path = tmp_path / "instruction-data.json"
    path.write_text('[{"instruction": "Spell.", "input": "freind", "output": "friend"}]')
    monkeypatch.setattr(Download, "fetch", lambda self: path)
    assert listed(Instructions()) == [Conversation((Message.asked("Spell.", "freind"), Message("assistant", "friend")))]


def test_the_bible_has_1189_chapters():
    documents = listed(KingJames())
    assert len(documents) == 1189
    assert documents[0].text().startswith("Genesis 1\nIn the beginning God created the heaven and the earth.\n")


def test_verses_old_and_new():
    documents = listed(Verses())
    assert len(documents) == 31_099 and all(isinstance(d, Example) and d.prompt and d.answer for d in documents)
    said = {d.prompt: d.answer for d in documents if isinstance(d, Example)}
    assert said["And God said, Let there be light: and there was light."].startswith('God said, "Let there be light,"')
    assert said["Jesus wept."] == "Jesus wept." and not any("[" in prompt for prompt in said)


def test_english_and_japanese_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_DATA", str(tmp_path))
    (tmp_path / "enja").mkdir()
    sha256 = {}
    for name, text in {"train.en": "a\nb\n", "train.ja": "あ\nい\n", "dev.en": "c\n", "dev.ja": "う\n"}.items():
        (tmp_path / "enja" / name).write_text(text, encoding="utf-8")
        sha256[name] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr("llm_jax.data.downloads.ENJA_SHA256", sha256)
    source = EnglishJapanese()
    assert listed(source) == [Example("a", "あ"), Example("b", "い")]
    held_out = source.validation()
    assert held_out is not None and list(held_out) == [Example("c", "う")]


def test_mixtures_of_mixtures_multiply_their_weights(tmp_path):
    a, b, c = (TextFiles(name) for name in "abc")
    nested = Mixture((Mixture((a, b), (1.0, 3.0)), c), (1.0, 1.0))
    assert nested.components() == ((a, 0.125), (b, 0.375), (c, 0.5))
    with pytest.raises(InputError, match="1 sources and 2 weights"):
        Mixture((a,), (1.0, 2.0))
    with pytest.raises(InputError, match="greater than 0"):
        Mixture((a, b), (1.0, 0.0))
    for weight in (math.nan, math.inf, -1.0):
        with pytest.raises(InputError, match="must be finite and greater than 0"):
            Mixture((a, b), (1.0, weight))


def test_plain_texts_of_a_mixture_are_that_mixture(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}')
    plain = PlainTexts(Mixture((JsonLines(str(path)), PythonHelp()), (1.0, 3.0)))
    assert plain.components() == ((PlainTexts(JsonLines(str(path))), 0.25), (PlainTexts(PythonHelp()), 0.75))
    assert listed(plain.components()[0][0]) == [Text("1+1=2")]


# --------------------------------------------------------------------------------------------------------- downloads


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A file behind an address on this machine, and the function that stops serving it."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "poem.txt").write_bytes(b"Roses\nViolets\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop():
        server.shutdown()
        thread.join()
        server.server_close()

    yield f"http://127.0.0.1:{server.server_port}/poem.txt", stop
    if thread.is_alive():
        stop()


SHA256 = hashlib.sha256(b"Roses\nViolets\n").hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLM_JAX_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_a_download_is_fetched_once_and_then_served_from_the_cache(served, cache):
    url, stop = served
    assert listed(Download(url, SHA256, "poem.txt", "\n")) == [Text("Roses"), Text("Violets")]
    stop()
    assert listed(Download(url, SHA256, "poem.txt")) == [Text("Roses\nViolets\n")]


def test_a_download_that_is_not_what_its_checksum_says_is_refused(served, cache, tmp_path):
    url, _ = served
    with pytest.raises(InputError, match=f"poem.txt is not the file expected: its sha256 is not {'0' * 64}"):
        listed(Download(url, "0" * 64, "poem.txt"))
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_offline_the_address_the_checksum_and_the_way_out_are_named(served, cache):
    url, stop = served
    stop()
    with pytest.raises(InputError) as raised:
        listed(Download(url, SHA256, "poem.txt"))
    assert all(part in str(raised.value) for part in (url, SHA256, "--data_dir")) and "\n" not in str(raised.value)


def test_a_copy_in_the_data_folder_needs_no_network(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_DATA", str(tmp_path))
    (tmp_path / "poem.txt").write_bytes(b"Roses\nViolets\n")
    download = Download("http://127.0.0.1:9/poem.txt", SHA256, "poem.txt")
    assert listed(download) == [Text("Roses\nViolets\n")]
    (tmp_path / "poem.txt").write_bytes(b"Thorns")
    with pytest.raises(InputError, match=r"poem.txt is not the file expected: its sha256 is [0-9a-f]{64}, not"):
        listed(download)


def test_what_the_system_refuses_to_read_is_named(tmp_path, monkeypatch):
    for source in (TextFiles, JsonLines):
        with pytest.raises(InputError, match=r"cannot read .*: File name too long"):
            listed(source(str(tmp_path / ("x" * 300))))
    (tmp_path / "here.txt").write_text("a text")
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scan(folder)

    assert listed(TextFiles(str(tmp_path))) == [Text("a text")]
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot read the folder .*shut: Permission denied"):
        listed(TextFiles(str(tmp_path)))


def test_half_a_surrogate_pair_is_found_where_it_stands(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": "bad \\ud800"}\n')
    with pytest.raises(InputError, match=r"a.jsonl:2: the field 'text' is not valid Unicode: half a surrogate pair"):
        listed(JsonLines(str(path)))
