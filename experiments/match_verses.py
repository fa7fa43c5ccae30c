"""Does an encoder learn from pairs alone which of 64 modern verses says what an old one says?

    python -m llm_jax train match_verses --workdir=runs/match_verses

Sentence vectors by contrast (InfoNCE) of the King James Version and the World English Bible. The accuracy is how often
the verse that belongs to another is the nearest of the batch, of verses held out. How often it is before anything was
learnt, since many of a verse's words are in both, say `--set=steps=1 --set=optimizer.learning_rate=1e-9`.
"""

from llm_jax.data.documents import Rendering
from llm_jax.data.examples import TwoTexts
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Verses
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.pooling import Mean
from llm_jax.layers.positions import Rope
from llm_jax.models.encoder import Encoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bpe


def experiment() -> Experiment:
    block = Block(Attention(4, head=16, mask=Full()), SwiGLU(hidden=176))
    return Experiment(
        model=Encoder(Embed(width=64), Stack((block,), 2), Rope(), RMSNorm(), embed_norm=NoNorm(), pooling=Mean()),
        tokenizer=Bpe(vocabulary=2048),
        data=Data(
            Verses(longest=30),
            length=64,
            batch=64,
            packing=One("truncate"),
            split=ByHash(0.05),
            rendering=Rendering(learn="answers"),
            presentation=TwoTexts(),
        ),
        objective=Contrastive(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=20)),
        layout=Layout(),
        precision=Precision(),
        steps=300,
        log_every=50,
        eval_every=150,
        save_every=300,
    )
