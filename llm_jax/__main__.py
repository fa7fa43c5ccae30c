"""The command line: `python -m llm_jax VERB ...`."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from llm_jax.core import user_modules
from llm_jax.core.errors import InputError, lookup, nearest

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "The folder that holds everything of a run.")
flags.DEFINE_multi_string("set", [], "A setting to change, as path=value: steps=100, or model.positions=Alibi().")
flags.DEFINE_multi_string("modules", [], "A Python file of yours whose parts the run's manifest may name: it is run.")
flags.DEFINE_string("data_dir", None, "A folder with copies of the files that would be downloaded.")
flags.DEFINE_multi_string("prompt", [], "A text to go on from; give several for a batch.")
flags.DEFINE_multi_string("prompt_ids", [], "The same as token ids: 1,15043,29892.")
flags.DEFINE_enum(
    "special_tokens", "text", ["text", "parse"],
    "What to make of special tokens that a prompt spells: ordinary text, or, if you trust it, those tokens.",
)  # fmt: skip
flags.DEFINE_integer(
    "max_tokens", None, "The most tokens to generate; by default what the context holds.", lower_bound=1
)
flags.DEFINE_string("checkpoint", "newest", "Which checkpoint to use: newest, best, or a step.")
flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token; 1 samples as the model predicts.", lower_bound=0)
flags.DEFINE_integer("top_k", 0, "Sample among so many of the likeliest tokens; 0: all.", lower_bound=0)
flags.DEFINE_float("top_p", 1.0, "Sample among the likeliest tokens that hold this much probability.", 0, 1)
flags.DEFINE_float("min_p", 0.0, "Sample among tokens at least so likely as this share of the likeliest.", 0, 1)
flags.DEFINE_float("repetition_penalty", 1.0, "Above 1, tokens already there become less likely.")
flags.DEFINE_multi_string("stop", [], "A text at which to stop.")
flags.DEFINE_integer("seed", 0, "The seed of the sampling.", lower_bound=0, upper_bound=2**63 - 1)
flags.DEFINE_string("to", None, "The folder to export to: a new one.")
flags.DEFINE_string("system", None, "What the model is told before the chat.")

HELP = {"-h", "--help", "--helpfull"}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
WRITING = ("max_tokens", "seed", *SAMPLING)
RUN = ("workdir", "checkpoint", "set", "modules")  # to open a run's model


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command: what it does, whether it takes an experiment's NAME (or another `word`), and the flags it reads."""

    run: Callable[..., None]
    help: str
    named: bool = False
    flags: tuple[str, ...] = ()
    word: str = "NAME"
    optional: bool = False  # whether it can do without the name

    def called(self, verb: str) -> str:
        word = f"[{self.word}]" if self.optional else self.word
        return f"{verb} {word}" if self.named else verb


def list_() -> None:
    from llm_jax.models.presets import PRESETS

    names = user_modules.list_names()
    width = max(map(len, [*names, *PRESETS]))
    for name in names:
        print(f"{name:{width}}  {user_modules.description(name)}")
    print("\npublished models, for show and for experiments of your own:")
    for name, preset in PRESETS.items():
        print(f"{name:{width}}  {(preset.__doc__ or '').partition(chr(10))[0]}")


def show(name: str) -> None:
    from llm_jax.models.presets import PRESETS
    from llm_jax.training.summary import model_summary, summary

    if name in PRESETS:
        print(model_summary(PRESETS[name](), _assignments(), _modules()))
        print(f'\nin an experiment\'s file: from llm_jax.models import presets, then "model": presets.{name}()')
    elif name in user_modules.list_names() or name.endswith(".py"):
        print(summary(_experiment(name)))
    else:
        known = [*user_modules.list_names(), *PRESETS]
        raise InputError(f"no experiment or preset named {name!r}: {nearest(name, known)}")


def train(name: str | None = None) -> None:
    """Without a name the run in `--workdir` is gone on with."""
    from llm_jax.core.user_modules import module_name
    from llm_jax.data.documents import Conversation, Preference
    from llm_jax.engine.init_from import inherit
    from llm_jax.models.model import Generator
    from llm_jax.runs.record import from_its_folder, recorded
    from llm_jax.training.loop import train as run

    if name is None:
        modules = _modules()
        found = recorded(_workdir(), modules)
        files, place = found.copies, found.folder
        experiment: Any = found.experiment.set(_assignments(), (*modules, *map(module_name, files)))
        if found.data_dir:
            os.environ.setdefault("LLM_JAX_DATA", found.data_dir)
    else:
        experiment, files, place = _experiment(name), [name] if name.endswith(".py") else [], ""
    FLAGS["modules"].value = [*FLAGS.modules, *files]  # so that the commands shown at the end name them
    workdir = _workdir()
    with from_its_folder(experiment, workdir, place):
        run(experiment, workdir)
    first = experiment.data.documents("train")[:1]
    talks = any(isinstance(document, Conversation | Preference) for document in first)
    model = inherit(experiment, workdir).model
    writes = isinstance(model, Generator) and not model.beside()
    again = [_command("chat")] * (talks and writes) + [f"{_command('sample')} --prompt='...'"] * writes
    again += [_spelt("list")]
    print("\n  ".join(["\nwhat next:", *again]))


def evaluate() -> None:
    from llm_jax.engine.check import check_openings
    from llm_jax.engine.evaluation import evaluate as measure
    from llm_jax.engine.init_from import equip
    from llm_jax.engine.restore import restore
    from llm_jax.engine.trained import Finished
    from llm_jax.reports.base import findings

    program, tokenizer, params = restore(_workdir(), _assignments(), _modules(), FLAGS.checkpoint)
    experiment: Any = program.experiment
    check_openings(experiment)
    experiment.objective.check(experiment.model, experiment.data.documents("validation"))
    for metric, value in measure(program, params, experiment.data.evaluation(tokenizer)).items():
        print(f"{metric:16} {value:.6f}")
    failed: list[str] = []
    if experiment.report:
        for finding in findings(equip(Finished(experiment, tokenizer, params, program.frozen), program)):
            if finding.failed:
                failed += finding.lines
            else:
                print("\n".join(finding.lines))
    if failed:  # the others are told; here they are all that was asked for
        raise InputError("; ".join(failed))


def sample() -> None:
    from llm_jax.text.tokenizer import check_text

    lm = _load()
    for prompt in FLAGS.prompt:
        check_text(prompt, "--prompt")  # before any of it is shown
    prompts = [*FLAGS.prompt, *map(_token_ids, FLAGS.prompt_ids)] or [""]
    shown = [prompt if isinstance(prompt, str) else lm.tokenizer.decode(prompt) for prompt in prompts]
    settings = dict(stop=tuple(FLAGS.stop), special_tokens=FLAGS.special_tokens, **_values(WRITING))
    if len(prompts) == 1:
        pieces = lm.stream(prompts[0], **settings)
        print(shown[0], end="")
        for piece in pieces:
            print(piece, end="", flush=True)
        return print()
    for prompt, text in zip(shown, lm.generate(prompts, **settings), strict=True):
        print(f"{prompt}{text}\n")


def _token_ids(text: str) -> list[int]:
    try:
        return [int(token) for token in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"--prompt_ids must be token ids, as in --prompt_ids=1,15043,29892, not {text!r}") from None


def chat() -> None:
    from llm_jax.apps.chat import chat as talk
    from llm_jax.inference.sampling import Sampling

    sampling = Sampling(**_values(SAMPLING))
    talk(_load(), system=FLAGS.system, sampling=sampling, max_tokens=FLAGS.max_tokens, seed=FLAGS.seed)


def import_(source: str) -> None:
    from llm_jax.interop.import_ import import_model
    from llm_jax.models.decoder import Decoder
    from llm_jax.models.encoder import Encoder
    from llm_jax.models.model import Generator

    experiment = import_model(source, workdir := _workdir())
    again = [f"{_command('export')} --to=FOLDER"]
    if isinstance(experiment.model, Decoder):
        train_on = _spelt("train", "finetune", f"--set=init_from={workdir}", "--workdir=runs/tuned")
        again = [_command("chat"), f"{_command('sample')} --prompt='...'", train_on]
    elif isinstance(experiment.model, Generator):
        again.insert(0, f"{_command('sample')} --prompt='...'")
    elif isinstance(experiment.model, Encoder):
        again.insert(0, f"in Python: llm_jax.load({workdir!r}).embed(['...'])")
    print(f"{source} is a run now, in {workdir}\n\nwhat next:")
    print("\n".join(f"  {line}" for line in again))


def export() -> None:
    from llm_jax.interop.export import export_model

    if not FLAGS.to:
        raise InputError("say where to write: --to=FOLDER")
    export_model(_workdir(), FLAGS.to, FLAGS.checkpoint, assignments=_assignments(), modules=_modules())
    print(f"{FLAGS.workdir} is in {FLAGS.to}, as transformers reads it")


VERBS = dict(
    list=Verb(list_, "every experiment and its one-line question, and the published models"),
    show=Verb(
        show, "an experiment or a published model: its settings, size and cost", True, ("set", "modules", "data_dir")
    ),
    train=Verb(
        train,
        "train, or go on from the newest checkpoint; without NAME as the run's folder says",
        True,
        ("workdir", "set", "modules", "data_dir"),
        optional=True,
    ),
    eval=Verb(evaluate, "measure a run's model", False, (*RUN, "data_dir")),
    sample=Verb(sample, "generate text", False, (*RUN, "prompt", "prompt_ids", "special_tokens", "stop", *WRITING)),
    **{"import": Verb(import_, "make a run of a Hugging Face folder or a .gguf", True, ("workdir",), "SOURCE")},
    export=Verb(export, "write a run's model as a Hugging Face folder", False, (*RUN, "to")),
    chat=Verb(chat, "talk with a run's model in the terminal", False, (*RUN, "system", *WRITING)),
)


def _experiment(name: str) -> Any:
    from llm_jax import experiment
    from llm_jax.models.presets import PRESETS

    modules = _modules()
    if name in PRESETS:
        raise InputError(f"{name} is a model, not an experiment: `show {name}` tells how to use it in one")
    found = experiment.get(name)
    if name.endswith(".py"):
        modules += (user_modules.module_name(name),)
    return found.set(_assignments(), modules)


def _modules() -> tuple[str, ...]:
    return tuple(user_modules.load_module(path).__name__ for path in FLAGS.modules)


def _assignments() -> list[str]:
    return FLAGS["set"].value or []


def _workdir() -> str:
    if not FLAGS.workdir:
        raise InputError("say where the run is: --workdir=FOLDER")
    return FLAGS.workdir


def _load() -> Any:
    from llm_jax.engine.restore import load

    return load(_workdir(), _modules(), checkpoint=FLAGS.checkpoint, assignments=_assignments())


def _values(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: FLAGS[name].value for name in names}


def _python() -> str:
    """How this interpreter is called from here."""
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path


def _command(verb: str) -> str:
    return _spelt(verb, f"--workdir={FLAGS.workdir}", *(f"--modules={path}" for path in FLAGS.modules))


def _spelt(*words: str) -> str:
    """A command of these words, as it can be pasted into a shell."""
    return shlex.join([_python(), "-m", "llm_jax", *words])


def usage(verb: str | None = None) -> str:
    """The help of one verb, or of all."""
    if verb is None:
        lines = [f"  python -m llm_jax {v.called(name):13} {v.help}" for name, v in VERBS.items()]
        return "\n".join(
            [
                "From raw text to a chatbot, with every choice on the way an ablation.",
                "",
                *lines,
                "",
                "NAME is an experiment's name, or the path of a file of your own; show also takes a published model's.",
                "VERB --help tells its flags.",
            ]
        )
    found = VERBS[verb]
    lines = [f"python -m llm_jax {found.called(verb)} [flags]: {found.help}", ""]
    for name in found.flags:
        default = FLAGS[name].default
        shown = "" if default in (None, [], "") else f" (default: {default})"
        said = (FLAGS[name].help or "").partition(";\n")[0]  # absl adds a line of its own to flags that may be repeated
        lines.append(f"  --{name:20} {said}{shown}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The exit status: 0, or 2 after one line about bad input; for Ctrl-C and a closed pipe as a shell has it.

    A training that SIGTERM or SIGHUP stopped raises SystemExit, with the status of that.
    """
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except (InputError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at exit
        return 141


def _dispatch(argv: list[str]) -> int:
    words = _words(argv[1:])
    asked = words[:1] == ["help"] or HELP & set(argv[1:])
    verb = next(iter(words[1:] if words[:1] == ["help"] else words), None)
    if verb is None:
        if len(argv) > 1 and not asked:
            raise InputError(f"the first word must be a verb: {', '.join(VERBS)}")
        print(usage())
        return 0 if asked else 2
    found = lookup(VERBS, verb, "verb")
    if asked:
        print(usage(verb))
        return 0
    FLAGS.unparse_flags()  # what an earlier call in this process set
    _, first, *rest = FLAGS(argv)
    if first != verb or len(rest) not in ((0, 1) if found.optional else (int(found.named),)):
        raise InputError(f"write: python -m llm_jax {found.called(verb)} [flags]")
    if unread := [n for n in FLAGS if FLAGS[n].present and n not in found.flags and FLAGS[n] in _own_flags()]:
        raise InputError(f"{verb} has no flag --{unread[0]}: it reads {', '.join(found.flags) or 'none'}")
    if FLAGS.data_dir:
        os.environ["LLM_JAX_DATA"] = FLAGS.data_dir
    found.run(*rest)
    return 0


def _words(arguments: list[str]) -> list[str]:
    """The arguments that are neither flags nor, as in `--workdir runs/x`, the values of flags."""
    found, value = [], False
    for argument in arguments:
        name, flag = argument.lstrip("-"), argument.startswith("-") and not value
        if not value and not flag:
            found.append(argument)
        if flag and argument not in HELP and re.fullmatch(r"--\w+", argument) and name not in FLAGS:
            FLAGS([sys.argv[0], argument])  # says that there is no such flag, and which is near
        value = flag and name in FLAGS and not FLAGS[name].boolean
    return found


def _own_flags() -> list[Any]:
    return FLAGS.flags_by_module_dict().get(sys.argv[0], []) + FLAGS.flags_by_module_dict().get(__name__, [])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
