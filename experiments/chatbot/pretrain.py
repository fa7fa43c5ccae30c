"""What does a small GPT learn of English from plain text, before anyone tells it how to talk?

    python -m llm_jax train chatbot/pretrain --workdir=runs/chatbot/pretrain

The first of the four stages of `make chatbot`. The texts are those of the conversations without a word on who says
what, and the King James Bible, four to one.
"""

from experiments import quickstart
from llm_jax.data.sources import Conversations, KingJames, Mixture, PlainTexts
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.reports.text import Compression, Samples

HELD_OUT = ByHash(0.1)  # of the conversations, in all stages but `reward`: enough openings for a narrow interval


def experiment() -> Experiment:
    return quickstart.experiment().override(
        {
            "data.source": Mixture((PlainTexts(Conversations()), KingJames()), (4.0, 1.0)),
            "data.split": HELD_OUT,
            "data.evaluation_batches": 40,
            "steps": 900,
            "report": (Compression(), Samples(("Hello", "I like to", "My favourite"), max_tokens=40)),
        }
    )
