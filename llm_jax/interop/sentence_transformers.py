"""What the `sentence-transformers` package writes beside an encoder: how its vectors become one for a text.

`modules.json` lists the steps, `1_Pooling/config.json` says which vector is taken, and `sentence_bert_config.json` how
long a text may be. What the package would do to a text before it is tokenised is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import parse_json
from llm_jax.core.parts import show
from llm_jax.layers.pooling import First, Last, Mean, Normalized, Pooling
from llm_jax.models.encoder import Encoder

MODES = dict(pooling_mode_cls_token=First(), pooling_mode_mean_tokens=Mean(), pooling_mode_lasttoken=Last())
PACKAGE = "sentence_transformers.models"


def sentence_encoder(encoder: Encoder, folder: Path) -> Encoder:
    """The encoder with the pooling and the length of text that the files of `folder` say; itself if there are none.

    Raises:
      InputError: a step is not covered, or a file is damaged.
    """
    if not (folder / "modules.json").is_file():
        return encoder
    steps = _read(folder / "modules.json")
    kinds = [step["type"].rpartition(".")[2] for step in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"modules.json has the steps {', '.join(kinds)}, which is not covered: "
            "they may be Transformer, Pooling and Normalize"
        )
    modes = _read(folder / steps[1]["path"] / "config.json")
    chosen = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in MODES:
        said = " and ".join(chosen) or "of no mode"
        raise InputError(f"the pooling {said} is not covered: it may be one of {', '.join(MODES)}")
    pooling: Pooling = MODES[chosen[0]]
    reading = _optional(folder / "sentence_bert_config.json")
    if reading.get("do_lower_case"):
        raise InputError("sentence_bert_config.json has do_lower_case=true, which is not covered: it must be false")
    if (prompt := _optional(folder / "config_sentence_transformers.json").get("default_prompt_name")) is not None:
        raise InputError(
            f"config_sentence_transformers.json has default_prompt_name={prompt!r}, a text before every text, which is "
            "not covered: take it out, and write that text yourself"
        )
    most = reading.get("max_seq_length")
    return encoder.clone(
        pooling=Normalized(pooling) if len(kinds) == 3 else pooling, context=most or encoder.context, head=None
    )


def sentence_files(encoder: Encoder) -> dict[str, str]:
    """The text of each of those files, by its path, for what the encoder's pooling is.

    Raises:
      InputError: they have no word for its pooling.
    """
    normalized = isinstance(encoder.pooling, Normalized)
    inside = encoder.pooling.pooling if isinstance(encoder.pooling, Normalized) else encoder.pooling
    if inside not in MODES.values():
        raise InputError(f"sentence-transformers has no word for model.pooling={show(encoder.pooling, True)}")
    paths = dict(Transformer="", Pooling="1_Pooling") | (dict(Normalize="2_Normalize") if normalized else {})
    steps = [
        dict(idx=i, name=str(i), path=path, type=f"{PACKAGE}.{kind}") for i, (kind, path) in enumerate(paths.items())
    ]
    modes: dict[str, Any] = {name: part == inside for name, part in MODES.items()}
    written = {
        "modules.json": steps,
        "1_Pooling/config.json": dict(word_embedding_dimension=encoder.embed.width) | modes,
        "sentence_bert_config.json": dict(max_seq_length=encoder.limit(), do_lower_case=False),
    }
    return {path: json.dumps(content, indent=2) for path, content in written.items()}


def _optional(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
