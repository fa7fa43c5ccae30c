from ..tiny import tiny, tokenizer  # noqa: F401
