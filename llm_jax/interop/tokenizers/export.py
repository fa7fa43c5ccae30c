"""A tokenizer and its chat template as the files that `transformers.AutoTokenizer` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, processors

from llm_jax.core.files import write_atomically
from llm_jax.interop.configs.generation import BEGINS
from llm_jax.text.chat import ChatTemplate, Jinja
from llm_jax.text.guard import ROLE_NAMES
from llm_jax.text.special import ROLES
from llm_jax.text.tokenizer import SPACE, Tokenizer

_PIECES = (decoders.ByteFallback(), decoders.Fuse())
_SPACES = decoders.Replace(SPACE, " ")
DECODERS = dict(
    letters=decoders.ByteLevel(),
    pieces=decoders.Sequence([*_PIECES]),
    metaspace=decoders.Sequence([_SPACES, *_PIECES]),
    prefixed=decoders.Sequence([_SPACES, *_PIECES, decoders.Strip(" ", 1, 0)]),
    words=decoders.WordPiece(cleanup=False),
)

OURS = """\
{{{{ bos_token }}}}{{% set roles = {roles} %}}\
{{% if tools %}}{{{{ roles['system'] }}}}{{% for tool in tools %}}\
{{{{ ('' if loop.first else '\\n') + (tool | tojson) }}}}{{% endfor %}}{{{{ '{end}' }}}}{{% endif %}}\
{{% for message in messages %}}{{{{ roles[message['role']] + message['content'] }}}}\
{{% for call in message['tool_calls'] or [] %}}\
{{{{ '\\n' if message['content'] or not loop.first else '' }}}}\
{{{{ '<tool_call>\\n{{"name": "' + call['function']['name'] + '", "arguments": ' }}}}\
{{{{ call['function']['arguments'] | tojson }}}}{{{{ '}}\\n</tool_call>' }}}}{{% endfor %}}\
{{{{ '{end}' }}}}{{% endfor %}}\
{{% if add_generation_prompt %}}{{{{ roles['assistant'] }}}}{{% endif %}}"""


def export_tokenizer(
    tokenizer: Tokenizer, template: ChatTemplate, folder: str | Path, *, bos: bool = False, eos: bool = False,
    opening: tuple[int, ...] | None = None, separators: int | None = None, kinds: int = 1,
) -> None:  # fmt: skip
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json.

    `transformers` encodes a text to the same ids there, unless it spells a special token: for that program the text
    then holds the token. `bos` and `eos` say whether it puts these around a text by itself; `opening` are the tokens
    that a translation begins with. Between two texts stand as many `eos` as `separators` says (None: one, if a
    text ends with it); `kinds` is how many kinds of texts the model tells apart.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rust = tokenizer.rust()
    names = _names(tokenizer, rust["model"])
    rust["model"] = _with(rust["model"], names)
    flags = template if isinstance(template, Jinja) else Jinja("")
    rust["added_tokens"] = sorted(
        rust["added_tokens"]
        + [
            dict(
                id=i, content=name, single_word=False, lstrip=name in flags.lstrip, rstrip=name in flags.rstrip,
                normalized=False, special=i not in tokenizer.marks.values(),
            )
            for i, name in names.items()
        ],
        key=lambda token: token["id"],
    )  # fmt: skip
    whole = tokenizers.Tokenizer.from_str(json.dumps(rust))
    if whole.decoder is None:
        whole.decoder = DECODERS[tokenizer.spelling]
    around = [names[tokenizer.special[n]] if wanted else None for n, wanted in (("bos", bos), ("eos", eos))]
    between = names[tokenizer.special["eos"]] if separators else around[1]
    if any((*around, between)):
        used = {name: i for i, name in names.items() if name in (*around, between)}
        single = [piece for piece in (around[0], "$A", around[1]) if piece]
        begun = [piece for piece in (around[0], "$A", *[between] * (separators or 1)) if piece]
        kind = ":1" if kinds > 1 else ":0"
        pair = [*begun, *(f"{piece}{kind}" for piece in ("$B", around[1]) if piece)]
        whole.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[*used.items()])
    roles = ("bos", "eos", "pad", "unk", "mask")
    special = {f"{n}_token": names[i] for n, i in tokenizer.special.items() if n in roles}
    if tokenizer.spelling == "words":  # as BERT's are named
        special |= {theirs: special[ours] for theirs, ours in (("cls_token", "bos_token"), ("sep_token", "eos_token"))}
    settings: dict[str, Any] = (
        dict(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False) | special
    )
    if kinds > 1:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if (source := _source(tokenizer, template, names)) is not None:
        settings["chat_template"] = source
    ids = {f"{n}_token_id": i for n, i in tokenizer.special.items() if n in ("bos", "pad")}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", settings)
    begins = dict(zip(BEGINS, opening or (), strict=False))
    _write(folder / "generation_config.json", ids | begins | dict(eos_token_id=sorted(tokenizer.ends)))
    write_atomically(folder / "tokenizer.json", whole.to_str(pretty=True))


def _write(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _names(tokenizer: Tokenizer, model: dict[str, Any]) -> dict[int, str]:
    """How each special token is written: as it was published, or else `<|bos|>` and the like."""
    vocab = model["vocab"]
    pieces = dict(enumerate(p for p, _ in vocab)) if isinstance(vocab, list) else {i: p for p, i in vocab.items()}
    known = set(pieces.values())
    names = {i: n for n, i in (tokenizer.special | tokenizer.marks).items() if n not in ROLE_NAMES}
    for role, i in tokenizer.special.items():
        if role in ROLE_NAMES and i not in names:
            name = pieces.get(i) or f"<|{role}|>"
            while not pieces.get(i) and (name in known or name in names.values()):  # text of the corpus, another token
                name = f"<{name}>"
            names[i] = name
    return names


def _with(model: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """The model with the special tokens in their places: what reads the file numbers added tokens by these."""
    if isinstance(model["vocab"], dict):
        return dict(model, vocab=model["vocab"] | {name: i for i, name in names.items()})
    vocab = list(model["vocab"]) + [["", 0.0]] * (1 + max(names, default=-1) - len(model["vocab"]))
    for i, name in names.items():
        vocab[i] = [name, vocab[i][1]]
    return dict(model, vocab=vocab)


def _source(tokenizer: Tokenizer, template: ChatTemplate, names: dict[int, str]) -> str | None:
    """The template in Jinja; None if the tokenizer has no tokens for it."""
    if isinstance(template, Jinja):
        return template.source
    if not {"bos", "end_of_turn", *ROLES} <= tokenizer.special.keys():
        return None
    roles = json.dumps({role: names[tokenizer.special[role]] for role in ROLES})
    return OURS.format(roles=roles, end=names[tokenizer.special["end_of_turn"]])
