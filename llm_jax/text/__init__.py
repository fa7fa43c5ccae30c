"""Text as tokens: tokenizers, special tokens, the chat template."""

from llm_jax.text.chat import ChatTemplate, Message
from llm_jax.text.recipes import RECIPES, Bpe, Bytes, Characters, Gpt2, TokenizerRecipe, Unigram, WordPiece, Words
from llm_jax.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "RECIPES",
    "Bpe",
    "Bytes",
    "Characters",
    "ChatTemplate",
    "Gpt2",
    "Message",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerRecipe",
    "Unigram",
    "WordPiece",
    "Words",
    "load_tokenizer",
]
