"""Do vectors of words find sensible neighbours, with no text but the King James Bible?

    python -m llm_jax train word2vec_bible --workdir=runs/word2vec_bible

Skip-gram with negative sampling (Mikolov et al. 2013); the others are
`--set="objective=Cbow()"` and `--set="objective.decisions=HierarchicalSoftmax()"`.
"""

from llm_jax.data.documents import Rendering
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import KingJames
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.word2vec import SkipGram
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Linear
from llm_jax.parallel.layout import Layout
from llm_jax.reports.words import Neighbours
from llm_jax.text.recipes import Words


def experiment() -> Experiment:
    return Experiment(
        model=Word2Vec(Embed(width=100)),
        tokenizer=Words(vocabulary=8000, lowercase=True),
        data=Data(KingJames(), length=256, batch=32, rendering=Rendering(bos=False)),
        objective=SkipGram(window=5),
        optimizer=AdamW(learning_rate=1e-2, schedule=Linear(), weight_decay=0.0),
        layout=Layout(),
        precision=Precision(),
        steps=1000,
        log_every=50,
        eval_every=500,
        save_every=500,
        report=(Neighbours(("king", "god", "jesus", "water", "israel")),),
    )
