"""The report card of runs."""

from __future__ import annotations

import html.parser
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.sources import ChatterBot, Conversations, JsonLines, KingJames, Mixture, PlainTexts
from llm_jax.data.split import Few
from llm_jax.reports.card import card, main, sources
from llm_jax.reports.text import Samples

TAGS = ("meta", "br", "use", "path", "rect")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two stages of a tiny model, the second from the first."""
    folder = tmp_path_factory.mktemp("stages")
    small: dict[str, Any] = {
        "model.stack.repeats": 1, "model.embed.width": 16, "data.length": 64, "data.batch": 2, "steps": 2,
        "log_every": 1, "eval_every": 1, "save_every": 2, "tokenizer.vocabulary": 300, "layout.data": 1,
        "data.evaluation_batches": 40, "data.split": Few(300), "report": (Samples(max_tokens=3),),
    }  # fmt: skip
    llm_jax.train(llm_jax.get("small_gpt").override(small), folder / "one")
    second = {name: value for name, value in small.items() if not name.startswith(("model", "tokenizer"))}
    llm_jax.train(llm_jax.get("finetune").override(second | {"init_from": str(folder / "one")}), folder / "two")
    return [folder / "one", folder / "two"]


class Reader(html.parser.HTMLParser):
    """The text of each cell, the headings, and whether every tag that opens closes."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.said.setdefault(self.open[-1], []).append(data.strip())


def test_it_shows_the_stages_their_curves_and_what_each_replies(runs, tmp_path):
    page = card(runs, tmp_path / "card.html", prompts=("Hi <b>there</b> & all",)).read_text(encoding="utf-8")
    read = Reader(page)
    assert not read.open and read.said["h1"] == ["small_gpt → finetune"]
    assert read.said["h2"] == ["The stages", "The same prompts, at every stage", "small_gpt", "finetune"]
    assert page.count("<svg") == 2 and "http-equiv" not in page
    assert "Hi &lt;b&gt;there&lt;/b&gt; &amp; all" in page and "<b>" not in page, "what is said is text"
    cells = read.said["td"]
    assert "What does a small, modern GPT learn from conversations? The base that ablations start from." in cells
    assert cells.count("Conversations") == 2, "a source is shown by its name"
    assert any("loss" in cell and "accuracy" in cell for cell in cells)
    again = card(runs, tmp_path / "again.html", prompts=("Hi <b>there</b> & all",)).read_text(encoding="utf-8")
    assert again == page


def test_sources_are_shown_by_their_names():
    mixed = Mixture((PlainTexts(Conversations()), KingJames()), (4.0, 1.0))
    for source, said in (
        (Conversations(), "Conversations"),
        (mixed, "Conversations, KingJames 4:1"),
        (PlainTexts(mixed), "Conversations, KingJames 4:1"),
        (
            Mixture((KingJames(), ChatterBot(), mixed), (0.3, 0.2, 0.5)),
            "Conversations, KingJames, ChatterBot, KingJames 4:3:2:1",
        ),
        (Mixture((KingJames(), JsonLines("/far/away/own.jsonl")), (2.0, 3.0)), "JsonLines(own.jsonl), KingJames 3:2"),
        (Mixture((KingJames(), ChatterBot()), (1.0, 1.0)), "KingJames, ChatterBot 1:1"),
    ):
        assert sources(source) == said


def test_the_files_of_a_run_and_its_card_are_readable_by_whom_the_umask_lets_read(runs, tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    page = card(runs[:1], tmp_path / "card.html", prompts=("Hi", "long " * 99))
    assert "(no reply: the latest message has " in page.read_text(encoding="utf-8"), "the others are told all the same"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (page, *runs[0].rglob("*"))}
    wanted = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    assert not {str(path): oct(mode) for path, mode in modes.items() if mode != wanted[path.is_dir()]}


def test_the_command_line(runs, tmp_path, capsys):
    assert main([str(runs[0]), f"--to={tmp_path / 'card.html'}"]) == 0
    assert (tmp_path / "card.html").exists() and "the report card" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert "card: no folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="a card is of one run at least"):
        card([], tmp_path / "none.html")


def test_help():
    said = subprocess.run([sys.executable, "-m", "llm_jax.reports.card", "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and "the folders of runs, in the order of their stages" in said.stdout
