"""EleutherAI's evaluation harness on our models, under the name llm_jax:

    lm_eval --model llm_jax --model_args workdir=runs/a --tasks arc_easy --batch_size 16

`workdir` is a run's folder, a Hugging Face folder or a .gguf. Version 0.4.13 of the harness looks for models among its
own only, so there the first word is `python -m llm_jax.apps.harness`; what follows is the same. In Python:

    lm_eval.simple_evaluate(model=Harness("runs/a"), tasks=["arc_easy"])  # or a LanguageModel
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import lm_eval.models  # noqa: F401  (so that those of the harness are registered too)
from absl import logging
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llm_jax.apps.conversation_text import BEGIN, ConversationText, without_marks
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import conform, settings, show
from llm_jax.core.user_modules import load_module
from llm_jax.inference.generate import Generation, Writer, prepare, row_keys
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.likelihood import likelihoods
from llm_jax.inference.sampling import Sampling
from llm_jax.interop.import_ import load
from llm_jax.models.model import Generator, Translator
from llm_jax.text.chat import Message, rendered
from llm_jax.text.guard import ROLE_NAMES
from llm_jax.text.prompts import SpecialTokens, check_special_tokens, notice, parse, token_ids
from llm_jax.text.special import frame

ROWS = 16  # of a batch, where the harness is told to find out itself
UNBOUNDED = 2048  # tokens in view where the model has no bound: the harness's own number
ANSWER = 256  # tokens of an answer where a task has no bound: the same


class Harness(TemplateLM):
    """A generator as the harness asks for it: how likely is this after that; go on from here.

    A text begins with `bos` where it did in the data (of a published model: where its tokenizer puts one), or as
    `add_bos_token` says; also where it spells it out. Nothing else in a text is read as a special token, which is said
    once where a text spells one. A request may have token ids in place of a text. What is too long loses its beginning.
    A conversation is written by the model's own template, with nothing before it.

    A whole text (`loglikelihood_rolling`) is scored after `bos`, or `eos` where the tokenizer has no `bos`, which is
    read once and is never a target, as in training and in `eval`. So it is where a text is longer than `max_length`:
    each window begins with the last token of the one before, and the last window is a full one, of which only the new
    tokens count (the harness's own windows).

    Args:
      workdir: a run's folder, a Hugging Face folder, a .gguf, or a language model.
      batch_size: rows; "auto": 16.
      checkpoint: as of `load`, for a run.
      max_length: tokens in view; None: as many as the model has.
      modules: a Python file of yours whose parts the run's manifest names.
      seed: of what tasks ask to be sampled.
      special_tokens: "parse" reads the special tokens that texts spell as these, of tasks that you trust.
      device, max_batch_size: the harness gives them to all models; JAX has chosen its devices.

    Raises:
      InputError: the model cannot be loaded, or does not predict each token from those before it alone.
    """

    def __init__(
        self, workdir: str | LanguageModel, batch_size: int | str = "auto", checkpoint: int | str = "newest",
        max_length: int | None = None, add_bos_token: bool | None = None, modules: str | None = None, seed: int = 0,
        special_tokens: SpecialTokens = "text", device: Any = None, max_batch_size: Any = None,
    ):  # fmt: skip
        super().__init__()
        check_special_tokens(special_tokens)
        self._special_tokens, self._noticed = special_tokens, False
        if not isinstance(workdir, LanguageModel):
            names = () if modules is None else (load_module(modules).__name__,)
            workdir = load(str(workdir), names, checkpoint=str(checkpoint))
        self.lm = workdir
        self.tokenizer: Any = self.lm.tokenizer
        self._model = conform(self.lm.model, Generator, "model")
        if isinstance(self._model, Translator) or self._model.beside() or self._model.ahead():
            raise InputError(f"{type(self._model).__name__} does not go on from text alone: use a causal Decoder")
        self._params = prepare(self._model, self.lm.params, self.lm.dtype)
        self._bos = self.lm.bos if add_bos_token is None else add_bos_token
        self._seed = seed
        self.batch_size = ROWS if str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = max_length or self.lm.context or UNBOUNDED
        if self.lm.context is not None and self.max_length > self.lm.context:
            raise InputError(f"max_length={max_length} is more than the model's context of {self.lm.context}")
        self._conversation = ConversationText(self.tokenizer)

    # ---------------------------------------------------------------------------------------------- text and its tokens

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.special["eos"]

    @property
    def prefix_token_id(self) -> int:
        """What a text without anything before it is read after."""
        special = self.tokenizer.special
        if not (found := [special[name] for name in ("bos", "eos") if name in special]):
            raise InputError("this tokenizer has neither bos nor eos, so nothing can stand before a text")
        return found[0]

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows its stored requests by."""
        return self.tokenizer.identity

    def tok_encode(
        self, string: str | Sequence[int], add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:  # fmt: skip
        if not isinstance(string, str):
            return token_ids(string, self.tokenizer.vocabulary)
        if string.startswith(BEGIN):
            return self._conversation.read(string)
        bos = frame(self.tokenizer.special, "bos", self._bos and add_special_tokens is not False)
        if self._special_tokens == "parse":
            ids = parse(self.tokenizer, string, self.lm.template)
            return ids if ids[:1] == [self.prefix_token_id] else [*bos, *ids]
        if (rest := self._after_prefix(string)) is not None:
            return [self.prefix_token_id, *self.tokenizer.spans(rest, first=False)[0]]
        return [*bos, *self.tokenizer.encode(string)]

    def _after_prefix(self, string: str) -> str | None:
        """The text after the `bos` that it spells out, if it begins so."""
        spelt = self._conversation.names[self.prefix_token_id]
        return string.removeprefix(spelt) if spelt not in ROLE_NAMES and string.startswith(spelt) else None

    def _encode_pair(self, context: Any, continuation: Any) -> tuple[list[int], list[int]]:
        """What is read, and what is scored after it: at least one token each. Either may be given as token ids.

        White space at the end of the context belongs to what follows, as the harness has it. Two texts are encoded as
        one, unless a token would reach over the border: then no token of that text ends where the context does, so each
        is encoded by itself.

        Raises:
          InputError: the continuation has no token, or more than can be scored.
        """
        if isinstance(context, str) and isinstance(continuation, str):
            kept = context.rstrip()
            context, continuation = kept, context[len(kept) :] + continuation
        before = self.tok_encode(context)
        after = self._after(context, before, continuation)
        if not 0 < len(after) <= self.max_length:
            raise InputError(
                f"a text to score has {len(after)} tokens: 1 to {self.max_length} can be scored. Leave the document "
                "out, or change the task's doc_to_target or doc_to_choice"
            )
        return before or [self.prefix_token_id], after

    def _after(self, context: Any, before: list[int], continuation: Any) -> list[int]:
        """The continuation's tokens, after the context's, which are `before`."""
        if not isinstance(continuation, str):
            return self.tok_encode(continuation)
        if isinstance(context, str):
            if not context:
                return self._unframed(continuation)
            whole = self.tok_encode(context + continuation)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        if self._special_tokens == "parse":
            return parse(self.tokenizer, continuation, self.lm.template, first=False)
        return self.tokenizer.spans(continuation, first=False)[0]

    def _unframed(self, text: str | Sequence[int]) -> list[int]:
        """The tokens of a text, without the `bos` that it begins with or that is put there."""
        ids = self.tok_encode(text)
        return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

    def _notice(self, requests: Sequence[Any], count: int) -> None:
        """Says once that the first `count` texts of requests spell special tokens, if they do."""
        if self._noticed or self._special_tokens == "parse":
            return
        texts = [text for request in requests for text in request.args[:count] if isinstance(text, str)]
        read = [rest if (rest := self._after_prefix(text)) is not None else text for text in texts]
        if told := notice(self.tokenizer, [text for text in read if not text.startswith(BEGIN)]):
            self._noticed = True
            logging.warning("%s", told)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a text that `tok_encode` knows: no content of it yields a special token.

        Without `add_generation_prompt` the last message is the beginning of what the assistant says.
        """
        said = [Message(m["role"], without_marks(m["content"])) for m in chat_history]
        begun = "" if add_generation_prompt else said.pop().content
        try:
            ids, _ = rendered(self.lm.template, self.tokenizer, said, reply=True)
        except InputError as error:
            if not (rest := [m for m in said if m.role != "system"]) or len(rest) == len(said):
                raise
            logging.warning("without the system's message: %s", error)
            ids, _ = rendered(self.lm.template, self.tokenizer, rest, reply=True)
        return self._conversation.write(ids) + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's settings, for the harness to know what it stores by.

        Raises:
          InputError: one is asked for by name, and a run has one.
        """
        if isinstance(chat_template, str):
            raise InputError(f"there is no chat template named {chat_template!r}: a run has one, without a name")
        return show(self.lm.template, whole=True) if chat_template else None

    # ------------------------------------------------------------------------------------------------------- likelihood

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any) -> Any:
        texts = [((before + after)[-(self.max_length + 1) :], len(after)) for _, before, after in requests]
        with tqdm(total=len(texts), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            found = likelihoods(self._model, self._params, texts, rows=self.batch_size, advance=bar.update)
        for (asked, _, _), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._notice(requests, 2)
        pairs = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Tokenizing inputs"):
            with _named(request):
                pairs.append((request.args, *self._encode_pair(*request.args)))
        return self._loglikelihood_tokens(pairs, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        self._notice(requests, 1)
        windows: list[tuple[int, Any]] = []
        prefix = self.prefix_token_id
        for number, request in enumerate(requests):
            with _named(request):
                ids = self._unframed(*request.args)  # the windows begin with it
            for window in get_rolling_token_windows(ids, prefix, max_seq_len=self.max_length, context_len=1):
                windows.append((number, (None, *make_disjoint_window(window))))
        scored = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for (number, _), (logp, _) in zip(windows, scored, strict=True):
            totals[number] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # ---------------------------------------------------------------------------------------------------------- writing

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        self._notice(requests, 1)
        prompts: list[list[int]] = []
        alike: dict[str, list[int]] = {}  # those that are asked for alike are written together
        settled: dict[str, tuple[Sampling, tuple[str, ...], int]] = {}
        for number, request in enumerate(requests):
            wanted = json.dumps(request.args[1], sort_keys=True)
            with _named(request):  # all of them, before the first is answered
                prompts.append(self.tok_encode(request.args[0]) or [self.prefix_token_id])
                if wanted not in settled:
                    settled[wanted] = self._asked(request.args[1])
            alike.setdefault(wanted, []).append(number)
        said = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for wanted, numbers in alike.items():
                sampling, stop, most = settled[wanted]
                numbers.sort(key=lambda number: -len(prompts[number]))
                for first in range(0, len(numbers), self.batch_size):
                    batch = numbers[first : first + self.batch_size]
                    read = [prompts[number][-(self.max_length - most) :] for number in batch]
                    for number, text in zip(batch, self._write(read, batch, sampling, stop, most), strict=True):
                        said[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return said

    def _asked(self, wanted: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...], int]:
        """How to draw, where to stop, and the most tokens, of what a task calls generation_kwargs."""
        from lm_eval.models.utils import normalize_gen_kwargs  # slow to import

        try:
            given: dict[str, Any] = {**normalize_gen_kwargs(dict(wanted), ANSWER)}
        except (TypeError, ValueError) as error:
            raise InputError(f"generation_kwargs {dict(wanted)} have a setting that is not a number: {error}") from None
        stop, most, sampled = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample")
        if unknown := given.keys() - set(settings(Sampling)):
            name = min(unknown)
            raise InputError(f"no setting named {name!r} for writing: {nearest(name, settings(Sampling))}")
        if not 0 < most < self.max_length:
            raise InputError(
                f"an answer of max_gen_toks={most} leaves no room for a prompt in the context of {self.max_length}: "
                f"ask for 1 to {self.max_length - 1}, as with --gen_kwargs max_gen_toks={max(1, self.max_length // 2)}"
            )
        settled: dict[str, Any] = given if sampled else given | {"temperature": 0.0}
        sampling = Sampling(**settled)
        sampling.check()
        return sampling, tuple(s for s in conform(stop, tuple[str, ...], "until") if s), most

    def _write(
        self, prompts: list[list[int]], numbers: Sequence[int], sampling: Sampling, stop: Sequence[str], most: int
    ) -> list[str]:
        tokenizer = self.tokenizer
        generation = Generation(
            self._model, self._params, prompts, max_tokens=most, sampler=sampling,
            key_B=row_keys(self._seed, numbers), stops=tokenizer.ends, never=tokenizer.unsaid,
            vocabulary=tokenizer.vocabulary, dtype=self.lm.dtype,
        )  # fmt: skip
        writers, texts = [Writer(tokenizer.stream(), stop) for _ in prompts], [""] * len(prompts)
        while not generation.finished:
            for row, new in enumerate(generation.advance()):
                texts[row] += writers[row].push(new)
                if writers[row].stopped:
                    generation.close(row)
        return [text + writer.flush() for text, writer in zip(texts, writers, strict=True)]

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's record of what was measured."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.lm.params))
        return dict(model_num_parameters=count, model_dtype=str(self.lm.dtype), add_bos_token=self._bos)


@contextlib.contextmanager
def _named(request: Any) -> Iterator[None]:
    """Names the task and the document of what cannot be answered."""
    try:
        yield
    except InputError as error:
        task = getattr(request, "task_name", None)  # a request may come without a task
        where = "" if task is None else f"task {task}, document {request.doc_id}: "
        raise InputError(f"{where}{error}") from None


register_model("llm_jax")(Harness)  # as a decorator it would hide the type


def main() -> int:
    """The exit status: the harness's own command line, where llm_jax is one more model."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
