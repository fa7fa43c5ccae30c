"""A model with its parameters and its tokenizer: text in, text, vectors or classes out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np
from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.core.parts import conform, show
from llm_jax.data.documents import Conversation, joined
from llm_jax.inference.embed import classify, classify_images, embed
from llm_jax.inference.generate import CHUNK, Generation, Writer, check_max_tokens, prepare, room, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Generator, Model, Translator
from llm_jax.models.vision import ImageClassifier
from llm_jax.objectives.classification import usual_problem
from llm_jax.objectives.objective import ProblemType
from llm_jax.text.chat import ChatTemplate, Message, rendered
from llm_jax.text.prompts import SpecialTokens, check_special_tokens, notice, parse, token_ids
from llm_jax.text.special import frame
from llm_jax.text.tokenizer import StreamDecoder, Tokenizer

Prompt = str | Sequence[int] | np.ndarray | Conversation  # a text, token ids, or a conversation to reply to
PIECE = 0.05  # seconds of text in a piece that is streamed, about: faster than the eye minds


class LanguageModel:
    """What a trained model can do: a Generator writes, an Encoder embeds, a Classifier tells classes apart.

    Attributes:
      model, params, tokenizer: what it is made of; `params` as in a checkpoint.
      template: how conversations are written as tokens.
      dtype: what it computes in.
      bos, eos: whether plain text begins with the `bos` token, and ends with `eos`, as it did in the data.
      prompt_eos: whether a prompt ends with `eos`, as the sources of BART and T5 do.
      problem_type: what the scores of a Classifier mean, as it was trained; by default as `usual_problem` has it.
      separators: how many `eos` stand between two texts that are read together; None: one.
      labels: the names of a Classifier's classes, in the order of its scores; None: they have none.
      normalized: makes of pixels what the model reads (`Images.normalized`); None: they are that.
      context: how many tokens it can hold in view, or None: there is no bound.
      warn: what is called, once, when `reply` leaves out turns, and once when a text spells special tokens.
    """

    def __init__(
        self, model: Model, params: Any, tokenizer: Tokenizer, *, template: ChatTemplate | None = None,
        dtype: Any = "float32", bos: bool = True, eos: bool = True, prompt_eos: bool = False,
        problem_type: ProblemType | None = None, labels: tuple[str, ...] | None = None,
        separators: int | None = None, normalized: Callable[[np.ndarray], np.ndarray] | None = None,
    ):  # fmt: skip
        """Raises InputError: the tokenizer has ids beyond the model's embedding."""
        if not isinstance(model, ImageClassifier) and tokenizer.vocabulary > model.words():
            raise InputError(
                f"the tokenizer has {tokenizer.vocabulary} ids, and the model's embedding {model.words()} rows: "
                "use the tokenizer that it was trained with"
            )
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.template, self.dtype = template or ChatTemplate(), np.dtype(dtype)
        self.bos, self.eos, self.prompt_eos = bos, eos, prompt_eos
        self.context = model.limit()
        classes = model.classes if isinstance(model, Classifier | ImageClassifier) else 0
        self.problem_type: ProblemType = problem_type or usual_problem(classes)
        self.labels, self.separators, self.normalized = labels, separators, normalized
        self.warn: Callable[[str], object] = logging.warning
        self._warned = self._noticed = False

    def __repr__(self) -> str:
        return f"LanguageModel({show(self.model, whole=False)}, {self.tokenizer.vocabulary:,} tokens, {self.dtype})"

    @functools.cached_property
    def _prepared(self) -> Any:
        return prepare(self.model, self.params, self.dtype)

    def logits(self, ids_BT: Any) -> np.ndarray:
        """float32 [B, T, V]: a score for each token that may follow each of these (an Encoder's: stand in its place).

        Raises:
          InputError: `ids_BT` is no table of token ids, or has more positions than the model, which may have no scores.
        """
        try:
            ids_BT = np.asarray(ids_BT)
        except ValueError:  # NumPy makes no table of rows that differ in length
            raise InputError(
                "ids_BT must be whole numbers [B, T], all rows of one length: pad or score them apart"
            ) from None
        if ids_BT.ndim != 2 or not ids_BT.size or not np.issubdtype(ids_BT.dtype, np.integer):
            raise InputError(f"ids_BT must be whole numbers [B, T], not {ids_BT.dtype} of shape {ids_BT.shape}")
        vocabulary = self.model.words()
        if ids_BT.min() < 0 or ids_BT.max() >= vocabulary:
            wrong = ids_BT[(ids_BT < 0) | (ids_BT >= vocabulary)][0]
            raise InputError(f"token id {wrong} is not in the vocabulary, which has ids 0 to {vocabulary - 1}")
        return np.asarray(_logits(self.model, self._prepared, ids_BT.astype(np.int32)))

    def embed(
        self, texts: Sequence[str | Sequence[int] | np.ndarray], special_tokens: SpecialTokens = "text"
    ) -> np.ndarray:  # fmt: skip
        """float32 [B, D]: an Encoder's vector for each text, by its `pooling`.

        Token ids are read as they are; `special_tokens` is that of `generate`.

        Raises:
          InputError: the model is no Encoder, or a text is longer than it reads.
        """
        model = conform(self.model, Encoder, "model")
        return embed(model, self._prepared, self._whole(texts, special_tokens))

    def classify(
        self, texts: Sequence[str | tuple[str, str] | Sequence[int] | np.ndarray] = (),
        special_tokens: SpecialTokens = "text", *, images: Any = None,
    ) -> np.ndarray:  # fmt: skip
        """float32 [B, O]: what a Classifier says of each text, by its `problem_type`, as transformers' pipelines do.

        An ImageClassifier says it of `images` [B, rows, columns, channels], with pixels as in the data's source.

        The classes are in the order of `labels`.

        Of "single_label_classification" how probable each class is, so that each row adds up to 1; of
        "multi_label_classification" how probable it is that the text is of each class, whatever the others; of
        "regression" the numbers themselves.

        Two texts that are read together are a tuple: a premise and a hypothesis, a query and a passage. Token ids are
        read as they are; `special_tokens` is that of `generate`.

        Raises:
          InputError: the model is no Classifier, or a text is longer than it reads; or the images are none, or not
            for it.
        """
        model = conform(self.model, Classifier | ImageClassifier, "model")
        if isinstance(model, ImageClassifier) == (images is None) or (images is not None and len(texts)):
            needed = "images, and no texts" if isinstance(model, ImageClassifier) else "texts, and no images"
            raise InputError(f"a {type(model).__name__} reads {needed}: classify({needed.split(',')[0]}=...)")
        if isinstance(model, ImageClassifier):
            return classify_images(model, self._prepared, self._pixels(images), self.problem_type)
        firsts: Any = texts if isinstance(texts, str) else [text[0] if _is_pair(text) else text for text in texts]
        ids = self._whole(firsts, special_tokens)
        begins = [len(each) for each in ids]
        seconds = {row: text[1] for row, text in enumerate(texts) if _is_pair(text)}
        for (row, _), after in zip(seconds.items(), self._bare(list(seconds.values()), special_tokens), strict=True):
            end = frame(self.tokenizer.special, "eos", self.eos)
            first = joined(self.tokenizer.special, self.separators, ids[row][: len(ids[row]) - len(end)])
            ids[row], begins[row] = [*first, *after, *end], len(first)
        return classify(model, self._prepared, ids, begins, self.problem_type)

    def _bare(self, texts: Sequence[str], special_tokens: SpecialTokens) -> list[list[int]]:
        """The tokens of texts that others are put around."""
        self._notice(texts, special_tokens)
        if special_tokens == "parse":
            return [parse(self.tokenizer, text, self.template) for text in texts]
        return self.tokenizer.encode_batch(texts)

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int | Sequence[int] | None = None, temperature: float = 1.0,
        top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0,
        stop: str | Sequence[str] = (), images: Any = None, special_tokens: SpecialTokens = "text",
    ) -> list[str]:  # fmt: skip
        """How each prompt goes on: the new text alone, up to the end of the document or turn, or a `stop` string.

        A prompt may be a conversation, which goes on with the assistant's turn (`Message.reply` reads calls in it), or
        token ids, which are read as they are. What spells a special token in a text (`<|im_end|>`) is ordinary text,
        so that no text can forge one, and that is said once; `special_tokens="parse"` reads it as that token, in
        prompts that you trust.

        `max_tokens` is one number, or one for each prompt (`room` tells the most); None: as long as the context has
        room. The settings are those of `Sampling`. What a row says depends on its prompt, its number, and the seed.
        `images` [B, rows, columns, channels], one for each prompt, are for a model that reads them (`Captioner`).

        Raises:
          InputError: a setting is out of range, a prompt and its text are longer than the context, or the images are
            not what the model reads.
        """
        if isinstance(prompts, str):
            raise InputError("prompts must be a list of texts, not one text: write [prompt]")
        if not len(prompts):
            return []
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        ids = self._prompts(prompts, special_tokens)
        stop = _stop_strings(stop)
        beside = {} if images is None else dict(image_BYXA=self._pixels(images))
        generation = self._begin(ids, max_tokens, sampling, seed, beside)
        shown = [[] if isinstance(p, Conversation) else prompt for p, prompt in zip(prompts, ids, strict=True)]
        writers = [Writer(self._stream_after(prompt), stop) for prompt in shown]
        texts = [""] * len(prompts)
        while not generation.finished:
            for row, new in enumerate(generation.advance()):
                texts[row] += writers[row].push(new)
                if writers[row].stopped:
                    generation.close(row)
        return [text + writer.flush() for text, writer in zip(texts, writers, strict=True)]

    def room(self, prompt: Prompt) -> int | None:
        """The most tokens that the model can write after a prompt; 0: it cannot read it. None: there is no bound.

        The last of them is drawn and never read: together with the prompt they may be one more than the context.

        Raises:
          InputError: the model does not write, or the template cannot write the conversation.
        """
        return room(conform(self.model, Generator, "model"), self._prompt(prompt, "text", self.prompt_eos))

    def stream(
        self, prompt: Prompt, max_tokens: int | None = None, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0,
        stop: str | Sequence[str] = (), special_tokens: SpecialTokens = "text",
    ) -> Iterator[str]:  # fmt: skip
        """What `generate` says of one prompt, in pieces as they are certain.

        Raises:
          InputError: as `generate`, at once.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        (ids,) = self._prompts([prompt], special_tokens)
        writer = Writer(self._stream_after([] if isinstance(prompt, Conversation) else ids), _stop_strings(stop))
        return _pieces(self._begin([ids], max_tokens, sampling, seed), writer)

    def reply(
        self, messages: Sequence[Message], max_tokens: int | None = None, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0,
        stop: str | Sequence[str] = (), tools: Sequence[str] = (),
    ) -> Iterator[str]:  # fmt: skip
        """The assistant's next turn, in pieces. `max_tokens` None: as long as the context has room.

        `tools` are what it may call, as in `ChatTemplate.render`; `Message.reply` reads calls in the whole turn.

        Where the conversation leaves too little room, its oldest turns are left out (`remember`), which is said once.

        Raises:
          InputError: as `generate`, at once; also where the latest message alone leaves no room.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        kept = self.remember(messages, max_tokens, tools)
        if len(kept) < len(messages) and not self._warned:
            self._warned = True
            self.warn(f"the conversation outgrew the context of {self.context} tokens: its oldest turns are left out")
        ids, _ = rendered(self.template, self.tokenizer, kept, reply=True, tools=tools, live=True)
        writer = Writer(self.tokenizer.stream(), _stop_strings(stop))
        return _pieces(self._begin([ids], max_tokens, sampling, seed), writer)

    def remember(
        self, messages: Sequence[Message], max_tokens: int | None = None, tools: Sequence[str] = ()
    ) -> list[Message]:
        """The latest of `messages` that leave room for an answer of `max_tokens` (None: a quarter of the context).

        Leading system messages stay. Turns are dropped oldest first, and an answer goes with its question.

        Raises:
          InputError: the latest message alone leaves no such room.
        """
        messages = list(messages)
        if self.context is None:
            return messages
        if max_tokens is not None:
            check_max_tokens(max_tokens)
        room = self.context // 4 if max_tokens is None else max_tokens
        system = next((at for at, m in enumerate(messages[:-1]) if m.role != "system"), max(len(messages) - 1, 0))
        length = 0
        for first in (system, *(at for at in range(system + 1, len(messages)) if messages[at].role == "user")):
            kept = messages[:system] + messages[first:]
            length = len(rendered(self.template, self.tokenizer, kept, reply=True, tools=tools, live=True)[0])
            if length + room <= self.context:
                return kept
        raise InputError(
            f"the latest message has {length} tokens with what must come before it, and with {room} for the answer "
            f"that is more than the model's context of {self.context}: shorten it"
        )

    def _whole(
        self, texts: Sequence[str | Sequence[int] | np.ndarray], special_tokens: SpecialTokens
    ) -> list[list[int]]:  # fmt: skip
        """As documents of the data are."""
        if isinstance(texts, str):
            raise InputError("texts must be a list of texts, not one text: write [text]")
        return self._prompts(texts, special_tokens, self.eos)

    def _plain(self, prompt: str) -> list[int]:
        return [*frame(self.tokenizer.special, "bos", self.bos), *self.tokenizer.encode(prompt)]

    def _pixels(self, images: Any) -> np.ndarray:
        """Images as the model reads them."""
        try:
            image_BYXA = np.asarray(images, np.float32)
        except (ValueError, TypeError):  # NumPy makes no array of images that differ in size
            image_BYXA = np.empty(0)
        if image_BYXA.ndim != 4 or not image_BYXA.size:
            raise InputError("images must be numbers [B, rows, columns, channels], all of one size")
        return image_BYXA if self.normalized is None else self.normalized(image_BYXA)

    def _prompts(
        self, prompts: Sequence[Prompt], special_tokens: SpecialTokens, eos: bool | None = None
    ) -> list[list[int]]:  # fmt: skip
        """Their tokens. `eos`: whether texts end with that token (None: if prompts do)."""
        check_special_tokens(special_tokens)
        self._notice([prompt for prompt in prompts if isinstance(prompt, str)], special_tokens)
        return [self._prompt(prompt, special_tokens, self.prompt_eos if eos is None else eos) for prompt in prompts]

    def _notice(self, texts: Sequence[str], special_tokens: SpecialTokens) -> None:
        if special_tokens == "text" and not self._noticed and (told := notice(self.tokenizer, texts)):
            self._noticed = True
            self.warn(told)

    def _prompt(self, prompt: Prompt, special_tokens: SpecialTokens, eos: bool) -> list[int]:
        special = self.tokenizer.special
        if isinstance(prompt, Conversation):
            return rendered(self.template, self.tokenizer, prompt.messages, reply=True, tools=prompt.tools)[0]
        if not isinstance(prompt, str):
            return token_ids(prompt, min(self.tokenizer.vocabulary, self.model.words()))
        if special_tokens == "text":
            return [*self._plain(prompt), *frame(special, "eos", eos)]
        ids, bos, after = (
            parse(self.tokenizer, prompt, self.template),
            frame(special, "bos", self.bos),
            frame(special, "eos", eos),
        )
        begins, ends = ids[:1] == bos, ids[-1:] == after  # one that is spelt out does not come twice
        return [*([] if begins else bos), *ids, *([] if ends else after)]

    def _stream_after(self, prompt: Sequence[int]) -> StreamDecoder:
        """A decoder that goes on from the prompt: a word after it keeps its space. A translation begins anew."""
        stream = self.tokenizer.stream()
        for token in [] if isinstance(self.model, Translator) else prompt:
            stream.push(token)
        return stream

    def _begin(
        self, ids: list[list[int]], max_tokens: int | Sequence[int] | None, sampling: Sampling, seed: int,
        beside: Mapping[str, Any] | None = None,
    ) -> Generation:  # fmt: skip
        model = conform(self.model, Generator, "model")
        return Generation(
            model, self._prepared, ids, max_tokens=max_tokens, sampler=sampling,
            key_B=row_keys(seed, range(len(ids))), stops=self.tokenizer.ends, never=self.tokenizer.unsaid,
            vocabulary=self.tokenizer.vocabulary, dtype=self.dtype, beside=beside,
        )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: Any, ids_BT: Any) -> jax.Array:
    scores: Any = model.apply({"params": params}, ids_BT, method="all_scores")
    return scores


def _is_pair(text: object) -> TypeGuard[tuple[str, str]]:
    return isinstance(text, tuple) and len(text) == 2 and all(isinstance(each, str) for each in text)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else conform(stop, tuple[str, ...], "stop")
    if "" in strings:
        raise InputError("a stop string must not be empty")
    return strings


def _pieces(generation: Generation, writer: Writer) -> Iterator[str]:
    """The only row's text, so many tokens at a time as take about `PIECE` seconds."""
    most = 1
    while not generation.finished and not writer.stopped:
        began = time.perf_counter()
        (new,) = generation.advance(most)
        each = (time.perf_counter() - began) / max(len(new), 1)
        most = max(1, min(CHUNK, 2 * most, int(PIECE / max(each, 1e-9))))
        if piece := writer.push(new):
            yield piece
    if piece := writer.flush():
        yield piece
