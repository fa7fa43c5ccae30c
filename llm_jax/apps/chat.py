"""Talking to a model in a terminal, or through a pipe: one line is one turn."""

from __future__ import annotations

import contextlib
import importlib
import sys
import unicodedata

from rich.console import Console

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.seeds import BITS, random_key
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.text.chat import Message

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer."
COMMANDS = ("/help", "/reset", "/quit")


def chat(
    lm: LanguageModel, *, system: str | None = None, sampling: Sampling = Sampling(), max_tokens: int | None = None,
    seed: int = 0,
) -> None:  # fmt: skip
    """Answers the lines of standard input until it ends. The same lines and seed get the same answers.

    Args:
      system: what the assistant is told before the conversation.
      max_tokens: the most tokens of an answer; None: as long as the context has room.

    Raises:
      InputError: a setting is out of range.
    """
    sampling.check()
    Chat(lm, system, sampling, max_tokens, seed).run()


class Chat:
    def __init__(self, lm: LanguageModel, system: str | None, sampling: Sampling, max_tokens: int | None, seed: int):
        random_key(seed)  # refuses what is no seed now, and not at the first answer
        self._lm, self._sampling, self._max_tokens, self._seed = lm, sampling, max_tokens, seed
        self._begin = [Message("system", system)] if system else []
        self._messages = list(self._begin)
        self._turns = 0
        self._console = Console(highlight=False, markup=False, emoji=False)
        lm.warn = lambda text: self._note(f"({text})")
        self._prompts = sys.stdin.isatty()

    def run(self) -> None:
        if self._prompts:
            with contextlib.suppress(ImportError):  # line editing for `input`, where Python has it
                importlib.import_module("readline")
            self._note(HELP)
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if line == "/quit":
                    return
                self._command(line)
            elif line:
                self._turn(line)

    def _read(self) -> str | None:
        """The next line, stripped; None at the end."""
        while True:
            try:
                return input("> " if self._prompts else "").strip()
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                refusal = f"what is said must be UTF-8, and byte 0x{error.object[error.start]:02x} is not"
                if not self._prompts:
                    raise InputError(refusal) from None
                self._note(refusal)
            except KeyboardInterrupt:
                if not self._prompts:
                    return None
                self._note("\n(Ctrl-D leaves)")

    def _command(self, line: str) -> None:
        if line == "/help":
            self._note(HELP)
        elif line == "/reset":
            self._messages = list(self._begin)
            self._note("(a new conversation)")
        else:
            self._note(f"no command {line.split()[0]!r}: {nearest(line.split()[0], COMMANDS)}")

    def _turn(self, line: str) -> None:
        said: list[str] = []
        asked = [*self._messages, Message("user", line)]
        try:
            for piece in self._lm.reply(
                asked, self._max_tokens, seed=(self._seed + self._turns) % 2**BITS, **vars(self._sampling)
            ):
                said.append(piece)
                self._console.print(printable(piece), end="", soft_wrap=True)
                self._console.file.flush()
        except InputError as error:
            self._note(str(error))
            return
        except KeyboardInterrupt:
            self._note(" (stopped)", end="")
        self._console.print()
        self._turns += 1
        self._messages = [*asked, Message("assistant", "".join(said))]

    def _note(self, text: str, end: str = "\n") -> None:
        """What this program says, and not the model."""
        self._console.print(text, style="dim", end=end, soft_wrap=True)


def printable(text: str) -> str:
    """The text with U+FFFD for characters that a terminal would obey: a model may say anything."""
    obeyed = {c for c in text if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in obeyed else c for c in text)
