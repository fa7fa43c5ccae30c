"""What does a generator learn of messages by predicting the next token, before it is told which are spam?

    python -m llm_jax train spam_causal_pretraining --workdir=runs/causal
    python -m llm_jax train spam_pretrained --set=init_from=runs/causal --workdir=runs/spam_causal

As `spam_masked_pretraining`, with as many parameters and steps on the same rows.
"""

from experiments import spam, spam_masked_pretraining
from llm_jax.data.presentation import AsIs
from llm_jax.experiment import Experiment
from llm_jax.layers.masks import Causal
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.objectives.next_token import NextToken


def experiment() -> Experiment:
    encoder = spam.encoder()
    block = encoder.stack.pattern[0]
    stack = encoder.stack.clone(pattern=(block.clone(attention=block.attention.clone(mask=Causal())),))
    return spam_masked_pretraining.experiment().override(
        {
            "model": Decoder(encoder.embed, stack, Rope()),
            "data.presentation": AsIs(),
            "objective": NextToken(),
        }
    )
