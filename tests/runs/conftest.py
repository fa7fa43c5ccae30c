from ..tiny import batches, stepper, tiny, tokenizer  # noqa: F401
