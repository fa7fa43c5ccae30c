"""What `show` says of a model: rooms, FLOPs and caches, counted by hand."""

from __future__ import annotations

import re
from typing import Any

import jax
import pytest

import llm_jax
from llm_jax.__main__ import main
from llm_jax.core import user_modules
from llm_jax.core.errors import InputError
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Transformed, Untied
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full, SlidingWindow
from llm_jax.layers.norms import LayerNorm, NoNorm, RMSNorm
from llm_jax.layers.pooling import Pooler
from llm_jax.layers.positions import Learned, RelativeBias
from llm_jax.models import presets
from llm_jax.models.alignments import FixedContext, Luong
from llm_jax.models.cells import GRU, LSTM
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.flops import count
from llm_jax.models.recurrent import RecurrentDecoder, RecurrentEncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.models.vision import Captioner, ImageClassifier, ImageEncoder, Patches
from llm_jax.training.summary import caches, model_summary, rooms, settings

D, F, V = 12, 20, 50
NORM = RMSNorm()
WHOLE = Block(Attention(2, 2, 4), FeedForward(F), NORM)
ATTENTION = 4 * D * 16 - 2 * D * 8  # queries and out have four heads, keys and values two
LOCAL = WHOLE.clone(attention=Attention(2, 2, 4, mask=SlidingWindow(5), norm=NORM))


def boxed(model: Any) -> Any:
    return jax.eval_shape(model.begin, jax.random.key(0))


def test_rooms_of_a_decoder():
    model = Decoder(Embed(D, V), Stack((LOCAL, WHOLE), 3), Learned(9), NORM, Untied(), embed_norm=NORM)
    assert list(rooms(boxed(model)).items()) == [
        ("embedding", V * D), ("positions", 9 * D), ("attention", 6 * ATTENTION), ("ffn", 6 * 2 * D * F),
        ("norms", 6 * 2 * D + 3 * 2 * 4 + 2 * D), ("head", V * D),
    ]  # fmt: skip


def test_rooms_of_an_encoder():
    block = WHOLE.clone(attention=Attention(2, 2, 4, mask=Full()))
    model = Encoder(
        Embed(D, V), Stack((block,), 2), Learned(9), head=Transformed(), types=2, embed_norm=LayerNorm(),
        pooling=Pooler(), context=9,
    )  # fmt: skip
    found = rooms(boxed(model))
    assert found == dict(
        embedding=(V + 2) * D, positions=9 * D, attention=2 * ATTENTION, ffn=2 * 2 * D * F,
        norms=2 * 2 * D + 2 * D + 2 * D, head=D * D + D + V, pooling=D * D + D,
    )  # fmt: skip
    # the pooler's layer is applied once a document, the head's at every token
    matrices = 2 * ATTENTION + 2 * 2 * D * F + D * D + V * D
    assert model.flops_per_token(boxed(model), 9) == 6 * matrices + 12 * 2 * 16 * 9
    assert "use: forward" in model_summary(model, [])
    assert model_summary(model, []).endswith("\ncache bytes a token: none, as this model does not generate")


def test_rooms_of_an_encoder_decoder():
    reading = WHOLE.clone(attention=Attention(2, 2, 4, mask=Full()))
    writing = WHOLE.clone(cross=CrossAttention(2, 1, 4))  # with fewer heads than the attention
    reader = Side(Stack((reading,), 2), RelativeBias(8, 10, both_ways=True), NORM, NoNorm())
    writer = Side(Stack((writing,), 3), RelativeBias(8, 10), NORM, NORM)
    model = EncoderDecoder(Embed(D, V), reader, writer, context=7, source_context=8)
    parts = boxed(model)
    found, cross = rooms(parts), 4 * D * 8
    assert list(found.items()) == [
        ("embedding", V * D), ("encoder positions", 8 * 4), ("encoder attention", 2 * ATTENTION),
        ("encoder ffn", 2 * 2 * D * F), ("encoder norms", (2 * 2 + 1) * D), ("decoder positions", 8 * 4),
        ("decoder attention", 3 * ATTENTION), ("decoder cross-attention", 3 * cross), ("decoder ffn", 3 * 2 * D * F),
        ("decoder norms", (3 * 3 + 2) * D),
    ]  # fmt: skip
    assert sum(found.values()) == count(parts)
    matrices = 5 * (ATTENTION + 2 * D * F) + 3 * cross + V * D
    assert model.flops_per_token(parts, 7) == 6 * matrices + 12 * 7 * (5 * 16 + 3 * 8)
    kept = dict(caches(model, 7))  # two key heads of width 4: 16 numbers a layer, and two whole ones of where
    assert kept == {"each token": (3 * 72, 3 * 40), "each token of the source": (3 * 72, 3 * 40)}
    assert "FLOPs a target and a source token, in rows of 7\n" in model_summary(model, [])


def test_rooms_of_images():
    block = WHOLE.clone(attention=Attention(2, 2, 4, mask=Full()))
    image = ImageEncoder(Patches(D, (6, 4), 2, 3), Stack((block,), 2), Learned(7), NORM)
    patches, each = 2 * 2 * 3 * D + D + D, 2 * (ATTENTION + 2 * D * F)  # a kernel, its bias, the first vector
    classifier = ImageClassifier(image, 5)
    found = rooms(boxed(classifier))
    assert next(iter(found)) == "image patches" and list(found)[-1] == "head"
    assert (found["image patches"], found["image positions"], found["head"]) == (patches, 7 * D, 5 * D + 5)
    flops = 6 * (2 * 2 * 3 * D + each) + 12 * 2 * 16 * 7
    assert classifier.limit() == 7 and classifier.flops_per_token(boxed(classifier), 7) == flops
    captioner = Captioner(image, Decoder(Embed(D, V), Stack((LOCAL,), 1), Learned(12), NORM, context=12))
    found = rooms(boxed(captioner))
    assert (found["image patches"], found["text embedding"], found["projection"]) == (patches, V * D, D * D + D)
    assert sum(found.values()) == count(boxed(captioner)) and captioner.limit() == 5
    assert dict(caches(captioner, 5)) == {"each of the last 5": (72, 40)}  # its image stands in the cache too


@pytest.mark.parametrize("run", ["loop", "scan"])
def test_caches_of_windows_are_capped(run):
    model = Decoder(Embed(D, V), Stack((LOCAL, WHOLE), 3, run), context=30)
    assert dict(caches(model, 30)) == {"each of the last 5": (3 * 72, 3 * 40), "each token": (3 * 72, 3 * 40)}
    assert dict(caches(model, 5)) == {"each token": (6 * 72, 6 * 40)}


def test_what_is_kept_whatever_the_length():
    """Of each layer of an LSTM: two vectors, and of which document they are (four bytes)."""
    said = model_summary(RecurrentDecoder(Embed(D, V), LSTM(), layers=3), [])
    row = f"  {3 * (2 * 4 * D + 4):>15,}  {3 * (2 * 2 * D + 4):>15,}  in all, whatever the length"
    assert said.endswith(f"\ncache bytes (float32, bfloat16), in texts of any length\n{row}")


@pytest.mark.parametrize(("alignment", "vectors"), [(FixedContext(), 1), (Luong(), 2)], ids=str)
def test_what_a_recurrent_translator_keeps(alignment, vectors):
    """The states, and of a source token its vector, what it is compared by, and eight bytes of where it stands."""
    model = RecurrentEncoderDecoder(Embed(D, V), GRU(), 2, alignment)
    found = dict(caches(model, 7))
    assert found["in all, whatever the length"] == (2 * (4 * D + 4), 2 * (2 * D + 4))
    assert found["each token of the source"] == (vectors * 4 * D + 8, vectors * 2 * D + 8)


def test_blocks_that_are_alike_are_said_once():
    model = Decoder(Embed(D, V), Stack((LOCAL, LOCAL, WHOLE), 1), context=30)
    said = dict(settings(model))
    assert said["stack.pattern.1"] == "as stack.pattern.0" and said["stack.pattern.2"] == "Block"
    assert "stack.pattern.0.ffn.hidden" in said and "stack.pattern.1.ffn.hidden" not in said


def shown(capsys, *words: str) -> str:
    assert main(["llm_jax", "show", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", presets.PRESETS)
def test_show_of_every_preset(name, capsys):
    said = shown(capsys, name)
    total, table = re.search(r"^([\d,]+) parameters\n((?:  .*%.*\n)+)", said, re.MULTILINE).groups()  # pyright: ignore
    assert f"{total} parameters" in (presets.PRESETS[name].__doc__ or "")
    sizes = [int(line.split()[0].replace(",", "")) for line in table.splitlines()]
    assert sum(sizes) == int(total.replace(",", "")) and min(sizes) > 0
    assert ("image patches\n" if name == "vit_tiny" else "  embedding\n") in table and "ffn\n" in table
    assert f"presets.{name}()" in said
    assert re.search(r"^FLOPs a .*, in rows of [\d,]+\n +[\d.e+]+  training: forward and backward$", said, re.MULTILINE)
    assert re.search(
        r"^attention kernel: Auto\(\) -> (Dense|Chunked)\(\), because \d+ queries are ", said, re.MULTILINE
    )
    none = "cache bytes a token: none, as this model does not generate\n"
    some = re.search(r"^cache bytes a token \(.*, in a context of [\d,]+\n( +[\d,]+){2}  each ", said, re.MULTILINE)
    assert (none in said, some is None) == (name in ("bert_base", "vit_tiny"),) * 2


def test_show_of_llama_says_what_the_arithmetic_says(capsys):
    said = shown(capsys, "llama3_8b")
    assert "  5,637,144,576   70.2%  ffn\n" in said
    matrices, attention = 8_030_261_248 - 128256 * 4096 - 65 * 4096, 12 * 32 * 4096 * 131_072
    assert f"{6 * matrices + attention:.4g}  training" in said and f"{2 * matrices + attention / 3:.4g}  gen" in said
    # 8 key heads of 128, keys and values, in 32 layers; 8 bytes more a layer for where the token stands
    assert f"{32 * (8 * 128 * 2 * 4 + 8):,}          {32 * (8 * 128 * 2 * 2 + 8):,}  each token\n" in said


def test_show_of_a_preset_takes_settings(capsys):
    said = shown(capsys, "gpt2", "--set=model.stack.repeats=1", "--set=model.head=Untied()")
    table, block = 50_257 * 768, 12 * 768**2 + 13 * 768
    total = 2 * table + 1024 * 768 + block + 2 * 768
    assert "model.stack.repeats = 1\n" in said and f"{total:,} parameters\n" in said
    assert f"{table:,}  {table / total:6.1%}  head\n" in said
    assert main(["llm_jax", "show", "gpt2", "--set=model.stack.repeat=1"]) == 2
    assert "did you mean 'repeats'?" in capsys.readouterr().err
    with pytest.raises(InputError, match="no setting 'steps'"):
        model_summary(presets.gpt2(), ["steps=3"])


def test_names_of_presets_are_their_own(capsys):

    assert not set(presets.PRESETS) & set(user_modules.list_names())
    assert main(["llm_jax", "show", "gtp2"]) == 2
    assert "no experiment or preset named 'gtp2': did you mean 'gpt2'?" in capsys.readouterr().err
    assert main(["llm_jax", "train", "gpt2", "--workdir=nowhere"]) == 2
    assert "gpt2 is a model, not an experiment" in capsys.readouterr().err


FILE = '''
"""What does SmolLM2's shape learn from scratch?"""

import llm_jax
from llm_jax.models import presets


def experiment():
    return llm_jax.get("small_gpt").override({"model": presets.smollm2_135m(), "data.length": 32, "data.batch": 4})
'''


def test_a_preset_in_an_experiment_of_ones_own(tmp_path, capsys):
    (tmp_path / "smol.py").write_text(FILE)
    found = llm_jax.get(str(tmp_path / "smol.py"))
    assert found.model == presets.smollm2_135m() and Experiment.of(found.manifest()) == found
    said = shown(capsys, str(tmp_path / "smol.py"), "--set=tokenizer=Bytes()")
    assert "134,515,008 parameters\n" in said and "FLOPs in all: 128,000 tokens in 1,000 steps of 4 x 32" in said
