"""Parts of texts that have so many tokens, cut where a token ends."""

from __future__ import annotations

from llm_jax.text.tokenizer import Tokenizer


def beginning(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The longest beginning of `text`, up to where a token ends, that has at most `most` tokens itself."""
    ids, ends = tokenizer.spans(text)
    if len(ids) <= most:
        return text
    kept = most
    while kept > 0:
        cut = text[: ends[kept - 1]]
        if (surplus := len(tokenizer.encode(cut)) - most) <= 0:  # alone it may be other tokens than within the text
            return cut
        kept -= surplus
    return ""


def ending(text: str, tokenizer: Tokenizer, lost: int) -> str:
    """What is left of `text` without its first `lost` tokens, 1 or more: always less than there was."""
    ids, ends = tokenizer.spans(text)
    return "" if lost >= len(ids) else text[max(1, ends[lost - 1]) :]
