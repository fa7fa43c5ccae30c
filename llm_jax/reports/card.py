"""A report card of runs that follow one another: what each was trained on, its curves, and what each says.

    python -m llm_jax.reports.card --to=card.html runs/chatbot/pretrain runs/chatbot/instruct ...

One HTML file that needs no other: figures are drawn into it. Each stage answers the same prompts, side by side.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import io
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import user_path, write_atomically
from llm_jax.core.user_modules import description, list_names, user_modules
from llm_jax.data.sources import Source
from llm_jax.engine.restore import restore
from llm_jax.engine.trained import language_model
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.models.flops import count
from llm_jax.models.model import Generator
from llm_jax.runs import metrics
from llm_jax.runs.folder import Run
from llm_jax.text.chat import Message

PROMPTS = ("Hello, how are you?", "What is your favourite food?", "Do you like music?", "What did you do today?",
           "Tell me about your family.")  # fmt: skip
GPT2 = 124_439_808  # parameters
UNDRAWN = ("step", "split", "tokens_per_second", "mfu", "skipped_steps", "learning_rate", "gradient_norm", "perplexity")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished run, as the card shows it.

    Attributes:
      lines: of metrics.jsonl.
      lm: the model, where it writes.
    """

    run: Run
    experiment: Experiment
    parameters: int
    lines: list[dict[str, Any]]
    lm: LanguageModel | None

    @classmethod
    def open(cls, workdir: Path) -> Stage:
        run = Run.existing(workdir)
        program, tokenizer, params = restore(workdir, modules=user_modules())
        writes = isinstance(program.experiment.model, Generator) and not program.experiment.model.beside()
        lm = language_model(program.experiment, tokenizer, params) if writes else None
        own = Experiment.of(run.manifest, user_modules())
        return cls(run, own, count(program.boxed), metrics.read(run.metrics), lm)

    @property
    def name(self) -> str:
        return self.experiment.name

    def of(self, split: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["split"] == split]

    def last(self, split: str) -> dict[str, Any]:
        """The last line of a split, without its step and the speed."""
        found = self.of(split)[-1:] or [{}]
        return {k: v for k, v in found[0].items() if k not in UNDRAWN or k == "perplexity"}


def card(workdirs: Sequence[str | Path], to: str | Path, prompts: Sequence[str] = PROMPTS, seed: int = 0) -> Path:
    """Writes the card of these runs, in their order, and returns where it is.

    Args:
      prompts: what a person says; every stage that writes replies to each, at temperature 0.7.

    Raises:
      InputError: there is no run, or one has not been trained.
    """
    stages = [Stage.open(user_path(workdir)) for workdir in workdirs]
    if not stages:
        raise InputError("a card is of one run at least: name the folders of runs")
    sections = [_stages(stages), _replies(stages, prompts, seed), *map(_curves, stages)]
    page = PAGE.replace("{{title}}", html.escape(" → ".join(s.name for s in stages)))
    content = page.replace("{{sections}}", "\n".join(sections))
    write_atomically(user_path(to), content.encode())
    return user_path(to)


def _stages(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        experiment: Any = stage.experiment
        asked = description(stage.name) if stage.name in list_names() else ""
        found = stage.last("validation") | {
            k: v for line in stage.of("report") for k, v in line.items() if k not in UNDRAWN
        }
        scores = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in found.items())
        rows.append((
            stage.name, asked, type(experiment.objective).__name__, sources(experiment.data.source),
            f"{stage.parameters / 1e6:.2f} M", f"{experiment.steps:,}", scores,
        ))  # fmt: skip
    most = max(stage.parameters for stage in stages)
    said = (
        f"The largest model here has {most / 1e6:.2f} million parameters, {most / GPT2:.1%} of the smallest GPT-2's. A "
        "model of a few million catches the tone of small talk, loses the thread after a turn or two, and makes up "
        "what it says of the world. Scores are of held-out data, of one training each: a difference smaller than that "
        "between two seeds means nothing."
    )
    return f"<h2>The stages</h2><p>{said}</p>" + _table(
        ("stage", "its question", "objective", "source", "parameters", "steps", "held-out scores, at the end"), rows
    )


def sources(source: Source) -> str:
    """What is trained on, by name, the most of it first: "Conversations, KingJames 4:1"."""
    mixed = sorted(source.components(), key=lambda each: -each[1])
    names = ", ".join(_name(part) for part, _ in mixed)
    if len(mixed) == 1:
        return names
    shares = [Fraction(share / mixed[-1][1]).limit_denominator(20) for _, share in mixed]
    whole = math.lcm(*(share.denominator for share in shares))
    return f"{names} {':'.join(str(share * whole) for share in shares)}"


def _name(source: Source) -> str:
    """That of its class, of the one within it where it shows another's documents anew, and of its file."""
    inner, path = (vars(source).get(name) for name in ("source", "path"))
    if isinstance(inner, Source):
        return _name(inner)
    kind = type(source).__name__
    return f"{kind}({Path(path).name})" if isinstance(path, str) else kind


def _replies(stages: Sequence[Stage], prompts: Sequence[str], seed: int) -> str:
    writing = [stage for stage in stages if stage.lm is not None]
    rows = []
    for number, prompt in enumerate(prompts):
        said = []
        for stage in writing:
            assert stage.lm is not None
            said.append(_reply(stage.lm, prompt, seed + number))
        rows.append((prompt, *said))
    return "<h2>The same prompts, at every stage</h2>" + _table(("a person says", *(s.name for s in writing)), rows)


def _reply(lm: LanguageModel, prompt: str, seed: int) -> str:
    room = min(48, (lm.context or 96) // 2)
    try:
        return "".join(lm.reply([Message("user", prompt)], room, 0.7, top_p=0.95, seed=seed)).strip()
    except InputError as error:  # the prompt fills the context: the others are told all the same
        return f"(no reply: {error})"


def _curves(stage: Stage) -> str:
    names = [name for name in dict.fromkeys(n for line in stage.lines for n in line) if name not in UNDRAWN]
    drawn = [name for name in names if len([line for line in stage.of("train") if name in line]) > 1]
    title = html.escape(stage.name)
    return f"<h2>{title}</h2>{_figure(stage, drawn)}" if drawn else f"<h2>{title}</h2><p>Nothing was logged twice.</p>"


def _figure(stage: Stage, names: Sequence[str]) -> str:
    """The SVG of a stage's metrics by step, training and held-out."""
    import matplotlib
    from matplotlib.figure import Figure  # slow to import

    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for split, style in (("train", dict(lw=1.2)), ("validation", dict(marker="o", ms=3, lw=1.2))):
            points = [(line["step"], line[name]) for line in stage.of(split) if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=split, **style)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    drawing = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "card", "svg.fonttype": "none"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    svg = drawing.getvalue()
    return svg[svg.index("<svg") :]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(r, 'td') for r in rows)}</table>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .45rem .6rem }
th { border-bottom: 2px solid #888; font-weight: 600 } td { border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto }
</style></head><body>
<h1>{{title}}</h1>
{{sections}}
</body></html>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llm_jax.reports.card", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", help="the folders of runs, in the order of their stages")
    parser.add_argument("--to", default="card.html", help="where to write the card (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(f"the report card: {card(given.runs, given.to)}")
    except InputError as error:
        print(f"card: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
