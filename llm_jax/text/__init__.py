"""Text as tokens: tokenizers, special tokens, the chat template."""

from llm_jax.text.calls import Call
from llm_jax.text.chat import TEMPLATES, Alpaca, ChatML, ChatTemplate, Jinja, Llama3, Message
from llm_jax.text.kept import Kept
from llm_jax.text.recipes import RECIPES, Bpe, Bytes, Characters, Gpt2, TokenizerRecipe, Unigram, WordPiece, Words
from llm_jax.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "RECIPES",
    "TEMPLATES",
    "Alpaca",
    "Bpe",
    "Bytes",
    "Call",
    "Characters",
    "ChatML",
    "ChatTemplate",
    "Gpt2",
    "Jinja",
    "Kept",
    "Llama3",
    "Message",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerRecipe",
    "Unigram",
    "WordPiece",
    "Words",
    "load_tokenizer",
]
