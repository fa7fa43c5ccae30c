"""Does this codebase train nanoGPT's small character model to nanoGPT's loss, in nanoGPT's time?

    python -m llm_jax train nanogpt_char --workdir=runs/nanogpt_char --set=seed=0

The recipe is the CPU one of https://github.com/karpathy/nanoGPT (README, "I only have a macbook"): Tiny Shakespeare by
characters, published validation loss 1.88.
"""

from llm_jax.core.dims import Normal
from llm_jax.data.documents import Rendering
from llm_jax.data.packing import Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import TinyShakespeare
from llm_jax.data.split import WithinText
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import Samples
from llm_jax.text.recipes import Characters


def experiment() -> Experiment:
    begin, out = Normal(0.02), Normal(0.02 / (2 * 4) ** 0.5)  # GPT-2's: smaller where a branch joins the stream
    norm = LayerNorm(bias=False)
    block = Block(
        Attention(key_heads=4, head=32, init=begin, out_init=out),
        FeedForward(hidden=512, init=begin, out_init=out),
        norm,
    )
    return Experiment(
        model=Decoder(Embed(width=128), Stack((block,), repeats=4), Learned(64), norm),
        tokenizer=Characters(),
        data=Data(
            TinyShakespeare(),
            length=64,
            batch=12,
            packing=Windows(stride=1),
            split=WithinText(0.1),
            rendering=Rendering(bos=False, eos=False),
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=100, last=0.1), b2=0.99),
        layout=Layout(),
        precision=Precision(),
        steps=2000,
        log_every=50,
        eval_every=500,
        save_every=500,
        report=(Samples(prompts=("ROMEO:",), max_tokens=50),),
    )
