"""What a checkpoint says of how its model writes: how a text begins, and what we have no such setting for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

BEGINS = ("decoder_start_token_id", "forced_bos_token_id")  # which the model keeps

# Each with the values that change nothing.
NOT_KEPT: dict[str, tuple[Any, ...]] = dict(
    do_sample=(False,), temperature=(1.0,), top_k=(0, 50), top_p=(1.0,), min_p=(), typical_p=(1.0,), num_beams=(1,),
    early_stopping=(False,), length_penalty=(1.0,), repetition_penalty=(1.0,), no_repeat_ngram_size=(0,),
    encoder_no_repeat_ngram_size=(0,), min_length=(0,), min_new_tokens=(), bad_words_ids=(), suppress_tokens=([],),
    begin_suppress_tokens=([],), forced_eos_token_id=(), penalty_alpha=(), num_beam_groups=(1,),
)  # fmt: skip


def begins(config: Config, generation: Config) -> dict[str, Any]:
    """config.json with what generation_config.json says of how a text begins: it goes first, as in transformers."""
    return dict(config) | {name: generation[name] for name in BEGINS if generation.get(name) is not None}


def not_kept(config: Config, generation: Config) -> list[str]:
    """A line that names the settings that would change what the model writes and are not kept; none if there are none.

    They change no scores.
    """
    said = {name: (generation if name in generation else config).get(name) for name in NOT_KEPT}
    found = [f"{name}={value}" for name, value in said.items() if value is not None and value not in NOT_KEPT[name]]
    if not found:
        return []
    return [f"settings of writing are not kept: {', '.join(found)}; ask for what you want of them when you sample"]
