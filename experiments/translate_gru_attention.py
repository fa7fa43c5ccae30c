"""Does attention help a recurrent network to translate, as Bahdanau et al. (2015) found?

    python -m llm_jax train translate_gru_attention --workdir=runs/translate_gru_attention

`translate_gru` with a decoder that looks back at every word of its source; `--set="model.alignment=Luong()"` looks in
the way of Luong et al. (2015).
"""

from experiments import translate_gru
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.alignments import Bahdanau
from llm_jax.models.cells import GRU
from llm_jax.models.recurrent import RecurrentEncoderDecoder


def experiment() -> Experiment:
    model = RecurrentEncoderDecoder(
        Embed(width=192, scale=192**0.5), GRU(), layers=2, alignment=Bahdanau(), dropout=0.1
    )
    return translate_gru.experiment().override({"model": model})
