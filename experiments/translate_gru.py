"""How well does a recurrent network translate that keeps all of a sentence in one vector? The others' base.

    python -m llm_jax train translate_gru --workdir=runs/translate_gru

Verses of the King James Bible, of up to 30 words, into modern English; `translate_gru_attention` and
`translate_transformer` differ in the model alone, and have as many parameters within 5%. From English into Japanese:

    ... --set="data.source=EnglishJapanese()" --set="report.0.tokenize=none"
"""

from llm_jax.data.documents import Rendering
from llm_jax.data.examples import SourceAndTarget
from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Verses
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.alignments import FixedContext
from llm_jax.models.cells import GRU
from llm_jax.models.recurrent import RecurrentEncoderDecoder
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import Bleu
from llm_jax.text.recipes import Bpe


def experiment() -> Experiment:
    return Experiment(
        model=RecurrentEncoderDecoder(
            Embed(width=208, scale=208**0.5), GRU(), layers=2, alignment=FixedContext(), dropout=0.1
        ),
        tokenizer=Bpe(vocabulary=2048),
        data=Data(
            Verses(longest=30),
            length=96,
            batch=20,
            packing=BestFit("refuse"),
            split=ByHash(0.02),
            rendering=Rendering(learn="answers"),
            presentation=SourceAndTarget(96),
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=100)),
        layout=Layout(),
        precision=Precision(),
        steps=600,
        log_every=50,
        eval_every=300,
        save_every=300,
        report=(Bleu(limit=300),),
    )
