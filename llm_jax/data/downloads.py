"""Corpora at an address, whose content is checked."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.errors import InputError
from llm_jax.core.files import cache_folder, parse_json, reading, user_path
from llm_jax.data.documents import Document, Example, Labelled, Preference
from llm_jax.data.fields import Record
from llm_jax.data.files import JsonLines, Source, bytes_of, decode, texts
from llm_jax.data.records import asked


@dataclasses.dataclass(frozen=True)
class Download(Source):
    """A text at an address, kept in the cache folder; or `file` in `$LLM_JAX_DATA`, where `--data_dir` points.

    Raises:
      InputError: the content is not what `sha256` says, or the address is out of reach.
    """

    url: str
    sha256: str
    file: str
    separator: str = ""

    def documents(self) -> Iterator[Document]:
        path = self.fetch()
        yield from texts(decode(bytes_of(path), path), self.separator)

    def fetch(self) -> Path:
        """The file, downloaded if it is not here yet."""
        if folder := os.environ.get("LLM_JAX_DATA"):
            path = user_path(folder) / self.file
            with reading(path):
                here = path.is_file()
            if here:
                if (found := hashlib.sha256(bytes_of(path)).hexdigest()) != self.sha256:
                    raise InputError(f"{path} is not the file expected: its sha256 is {found}, not {self.sha256}")
                return path
        import pooch

        pooch.get_logger().setLevel("WARNING")
        try:
            # the name carries the checksum, so that another version of the same name is another file
            fetched = pooch.retrieve(
                self.url,
                f"sha256:{self.sha256}",
                fname=f"{self.sha256[:12]}-{Path(self.file).name}",
                path=cache_folder("downloads"),
            )
        except ValueError:
            raise InputError(f"{self.url} is not the file expected: its sha256 is not {self.sha256}") from None
        except OSError as error:
            raise InputError(
                f"cannot download {self.url} ({type(error).__name__}): put {self.file} with sha256 "
                f"{self.sha256} in a folder and name the folder with --data_dir"
            ) from None
        return Path(fetched)


@dataclasses.dataclass(frozen=True)
class TinyShakespeare(Source):
    """1,115,394 characters of Shakespeare's plays as one document (char-rnn); nanoGPT's corpus for characters."""

    def documents(self) -> Iterator[Document]:
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
        sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        return Download(url, sha256, "tinyshakespeare.txt").documents()


@dataclasses.dataclass(frozen=True)
class MakemoreNames(Source):
    """32,033 first names, a document each (makemore)."""

    def documents(self) -> Iterator[Document]:
        url = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
        sha256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
        return Download(url, sha256, "names.txt", separator="\n").documents()


@dataclasses.dataclass(frozen=True)
class EnglishJapanese(Source):
    """50,000 short sentences from English to Japanese, split into words, and 500 held out (Tanaka Corpus, CC BY).

    They are https://github.com/odashi/small_parallel_enja; `test` holds its test set out in place of the development
    set. `$LLM_JAX_DATA` may hold them in a folder `enja`.
    """

    test: bool = False

    def documents(self) -> Iterator[Document]:
        return self._pairs("train")

    def validation(self) -> Iterator[Document]:
        return self._pairs("test" if self.test else "dev")

    def _pairs(self, split: str) -> Iterator[Document]:
        both = []
        for language in ("en", "ja"):
            name = f"{split}.{language}"
            path = Download(f"{ENJA}/{name}", ENJA_SHA256[name], f"enja/{name}").fetch()
            both.append(decode(bytes_of(path), path).rstrip("\n").split("\n"))
        for english, japanese in zip(*both, strict=True):
            yield Example(english, japanese)


@dataclasses.dataclass(frozen=True)
class GoogleAnalogies(Source):
    """19,544 questions of the kind "Athens Greece Oslo Norway", a document each (Mikolov et al. 2013a)."""

    def documents(self) -> Iterator[Document]:
        url = f"{WORD2VEC}/questions-words.txt"
        sha256 = "8c29b3332afc46f3fb8be04cb5297bf96f39aa7131272dff57869b4485b22a36"
        for text in Download(url, sha256, "questions-words.txt", separator="\n").documents():
            if not text.text().startswith(":"):  # the name of a kind of question
                yield text


@dataclasses.dataclass(frozen=True)
class SmsSpam(Source):
    """5,574 text messages, 747 of them spam (class 1), a document each (UCI; Almeida et al. 2011, CC BY)."""

    def documents(self) -> Iterator[Document]:
        url = f"https://raw.githubusercontent.com/justmarkham/pycon-2016-tutorial/{SMS}/data/sms.tsv"
        sha256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"
        for line in Download(url, sha256, "sms_spam.tsv", separator="\n").documents():
            kind, _, message = line.text().partition("\t")
            yield Labelled(message.strip(), int(kind == "spam"))

    def class_names(self) -> tuple[str, ...]:
        return "ham", "spam"


@dataclasses.dataclass(frozen=True)
class Instructions(Source):
    """1,100 instructions with their answers (Raschka's "Build a Large Language Model From Scratch", Apache-2.0)."""

    def documents(self) -> Iterator[Document]:
        sha256 = "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"
        url = f"{FROM_SCRATCH}/01_main-chapter-code/instruction-data.json"
        return JsonLines(str(Download(url, sha256, "instruction-data.json").fetch())).documents()


@dataclasses.dataclass(frozen=True)
class InstructionPreferences(Source):
    """1,094 of those instructions with two replies, of which one is preferred; six more have two equal ones."""

    def documents(self) -> Iterator[Document]:
        name = "instruction-data-with-preference.json"
        sha256 = "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e"
        path = Download(f"{PREFERENCES}/{name}", sha256, name).fetch()
        for number, record in enumerate(parse_json(decode(bytes_of(path), path))):
            if record["chosen"] != record["rejected"]:
                said = asked(Record.of(record, f"{path}, record {number}", None))
                yield Preference((said,), record["chosen"], record["rejected"])


SMS = "master"
FROM_SCRATCH = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/b80e7804b30830a00eb55d2abc7ac25a07f36fdc/ch07"
PREFERENCES = (
    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/2b7bd46a93311c1a77446ab1a83ff013ba3f6a70"
    "/ch07/04_preference-tuning-with-dpo"
)
WORD2VEC = "https://raw.githubusercontent.com/tmikolov/word2vec/20c129af10659f7c50e86e3be406df663beff438"
ENJA = "https://raw.githubusercontent.com/odashi/small_parallel_enja/312408a11c5fbcbc09443bebb18121f7efdcd61e"
ENJA_SHA256 = {
    "train.en": "148b05dcd28638fe20ee84f2b1127001c80982be352007dda241fb759adadc76",
    "train.ja": "fc81a1434349ec98a449d7ae9cd2530057f689637684ecfed3501ea6a8a07ecc",
    "dev.en": "04a2673449770657fd5e3b963cb856be3130923212b6db8ac7eaeef18f06c041",
    "dev.ja": "cd534f56b8639dc130f86a365e5ec0aa70042000bdd740a622fbbf8b6be4acca",
    "test.en": "45edb380749ec2b49cca7618fc5a7595fc9f791180672ba466b90c873a4aa8bf",
    "test.ja": "d37dc460a81b064e4106c8913eb11fa300da05cf3f58a7a5bbfec7e20947ddef",
}

DOWNLOADS = dict(
    Download=Download, TinyShakespeare=TinyShakespeare, MakemoreNames=MakemoreNames, EnglishJapanese=EnglishJapanese,
    GoogleAnalogies=GoogleAnalogies, InstructionPreferences=InstructionPreferences, Instructions=Instructions,
    SmsSpam=SmsSpam,
)  # fmt: skip
