"""What does a translator learn of two languages by restoring texts with gaps (BART), before it is shown a translation?

    python -m llm_jax train denoise_verses --workdir=runs/denoised
    python -m llm_jax train translate_few_pairs --set=init_from=runs/denoised --workdir=runs/few_pairs

The verses of `translate_transformer`, each by itself, old or new: nothing says which belong together.
"""

import dataclasses
from collections.abc import Iterator

from experiments import translate_transformer
from llm_jax.data.denoising import Denoising, TextInfilling
from llm_jax.data.documents import Example, Rendering, Text
from llm_jax.data.packing import One
from llm_jax.data.sources import Source, Verses
from llm_jax.data.split import ByHash, Split
from llm_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Sides(Source):
    """Both sides of the examples of `pairs` as texts; those of pairs that `split` holds out are held out."""

    pairs: Source
    split: Split

    def documents(self) -> Iterator[Text]:
        return self._texts(held_out=False)

    def validation(self) -> Iterator[Text]:
        return self._texts(held_out=True)

    def _texts(self, held_out: bool) -> Iterator[Text]:
        for pair in self.split(list(self.pairs.documents()))[held_out]:
            assert isinstance(pair, Example), "verses are examples"
            yield Text(pair.prompt)
            yield Text(pair.answer)


def experiment() -> Experiment:
    return translate_transformer.experiment().override(
        {
            "data.source": Sides(Verses(longest=30), ByHash(0.02)),
            "data.packing": One("truncate"),
            "data.rendering": Rendering(),
            "data.presentation": Denoising(TextInfilling(), sources=64),
            "data.length": 64,
            "data.batch": 32,
            "report": (),
        }
    )
