"""Can a tiny vision transformer read handwritten digits?

    python -m llm_jax train digits_classifier --workdir=runs/digits_classifier

1,797 digits of 8 x 8 pixels, a fifth of them held out; the accuracy on these is in the run's last lines.
"""

from experiments import digits_captions
from llm_jax.experiment import Experiment
from llm_jax.layers.pooling import Mean
from llm_jax.models.vision import ImageClassifier
from llm_jax.objectives.classification import Classification


def experiment() -> Experiment:
    return digits_captions.experiment().override(
        {
            "model": ImageClassifier(digits_captions.image(), classes=10, pooling=Mean()),
            "objective": Classification(smoothing=0.1),
            "report": (),
        }
    )
