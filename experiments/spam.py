"""Can a small encoder that has read nothing before tell spam from messages of friends? The others' base.

    python -m llm_jax train spam --workdir=runs/spam

`spam_pretrained` begins with what `spam_masked_pretraining` or `spam_causal_pretraining` has learnt; model, data, steps
and optimizer are the same. Of all messages 87% are no spam; a logistic regression on words has 97 to 98%.
"""

from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import WithLabel
from llm_jax.data.sources import SmsSpam
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.pooling import Mean
from llm_jax.layers.positions import Rope
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.stack import Stack
from llm_jax.objectives.classification import Classification
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bpe


def encoder() -> Encoder:
    """As many parameters as the generator of `spam_causal_pretraining`, of the same names."""
    block = Block(Attention(4, head=16, mask=Full()), SwiGLU(hidden=176))
    return Encoder(Embed(width=64), Stack((block,), 2), Rope(), RMSNorm(), Tied(), embed_norm=NoNorm())


def experiment() -> Experiment:
    return Experiment(
        model=Classifier(encoder(), classes=2, pooling=Mean()),
        tokenizer=Bpe(vocabulary=1024),
        data=Data(SmsSpam(), length=64, batch=32, packing=One("truncate"), split=ByHash(0.2), presentation=WithLabel()),
        objective=Classification(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=20)),
        layout=Layout(),
        precision=Precision(),
        steps=150,
        log_every=50,
        eval_every=150,
        save_every=150,
    )
