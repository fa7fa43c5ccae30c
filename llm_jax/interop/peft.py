"""Adapters alone, as `peft` reads them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from llm_jax.core.adapters import ADAPTER
from llm_jax.core.dims import Lettered
from llm_jax.core.errors import InputError
from llm_jax.core.files import open_to_others, user_path
from llm_jax.core.user_modules import user_modules
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.interop.export import family_for
from llm_jax.interop.weights import BLOCK, Names, Theirs, unload
from llm_jax.models.encoder import Encoder
from llm_jax.models.model import Model, Translator
from llm_jax.optim.trainable import Dora, Lora, leaves
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.fingerprints import check_belongs, run_tokenizer
from llm_jax.runs.folder import Run

PREFIX = "base_model.model."
MERGED = "export the merged model, with llm_jax export"
SUFFIXES = dict(down=".lora_A.weight", up=".lora_B.weight", magnitude=".lora_magnitude_vector")


def export_adapter(workdir: str | Path, folder: str | Path) -> None:
    """The adapters of a run's newest checkpoint (their average, if it keeps one).

    Raises:
      InputError: there is no such run, it trains no adapters alone, or its model is of no published family.
    """
    run = Run.existing(workdir)
    tokenizer = run_tokenizer(run)
    experiment = fill(Experiment.of(run.manifest, user_modules()), tokenizer)
    program = Program(experiment, jax.sharding.Mesh(jax.devices()[:1], ("data",)), tokenizer)
    if not isinstance(program.experiment.tuning, Lora):
        raise InputError(f"{workdir} has no adapters: export the model itself, with llm_jax export")
    belongs = functools.partial(check_belongs, run, experiment)
    with Checkpoints(run.checkpoints, run.manifest, belongs=belongs) as checkpoints:
        name = "average" if experiment.ema else "params"
        trained = checkpoints.restore_params(program.template.params, name).state
    model = experiment.model
    write(model, experiment.tuning, trained, user_path(folder))


def write(model: Model, tuning: Any, trained: Any, folder: Path) -> None:
    """Adapters of this model, as `tuning` has them.

    Raises:
      InputError: parameters are trained whole beside, a family keeps several kernels as one tensor, or there is none.
    """
    boxed, base = jax.eval_shape(lambda key: tuning.split(key, model.begin(key), model.trunks()), jax.random.key(0))
    if whole := [path for path in leaves(boxed) if path.rpartition(".")[2] not in ADAPTER]:
        raise InputError(f"{whole[0]} is trained whole, and is no adapter: {MERGED}")
    _, family, _ = family_for(model)
    if _blocks(boxed) != _blocks(base):
        raise InputError(f"adapters are in some blocks of the pattern alone: {MERGED}")
    tensors = dict(unload(boxed, trained, _names(boxed, family.names(model))))
    tensors = {PREFIX + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    config = dict(
        peft_type="LORA", task_type=_task(model), r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=0.0, bias="none",
        use_dora=isinstance(tuning, Dora), target_modules=sorted(modules), inference_mode=True,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    saving = folder / "adapter_model.saving"
    safetensors.numpy.save_file(tensors, saving, metadata={"format": "pt"})
    open_to_others(saving)
    os.replace(saving, folder / "adapter_model.safetensors")


def _task(model: Model) -> str | None:
    """peft's word for what the model is for; it has none for masked tokens."""
    match model:
        case Translator():
            return "SEQ_2_SEQ_LM"
        case Encoder() if model.head is None:
            return "FEATURE_EXTRACTION"
        case Encoder():
            return None
    return "CAUSAL_LM"


def _blocks(boxed: Any) -> set[str]:
    return {match[1] for path in leaves(boxed) if (match := BLOCK.search(path))}


def _names(boxed: Any, names: Names) -> Names:
    """The map of the adapters, from that of the kernels that they are beside."""
    found: dict[str, Theirs] = {}
    for path, box in leaves(boxed).items():
        room, _, name = path.rpartition(".")
        key = BLOCK.sub("block.", f"{room}.kernel")
        if name not in ADAPTER or key not in names:
            raise InputError(f"the checkpoint's family has no tensor for {path}")
        found[BLOCK.sub("block.", path)] = _beside(names[key], name, box)
    return found


def _beside(kernel: Theirs, name: str, box: Lettered) -> Theirs:
    """Where an adapter's parameter is, of a kernel that is there. Their kernels are [produced, summed]."""
    produced, *summed = kernel.axes.split()
    if kernel.fused or "{expert}" in kernel.name or len(summed) != 1:
        raise InputError(f"{kernel.name} has no adapter of its own in peft: {MERGED}")
    axes = dict(down=f"Z {summed[0]}", up=f"{produced} Z", magnitude=produced)[name]
    if sorted(axes.replace(" ", "")) != sorted(box.letters.replace("L", "")):
        raise InputError(f"{kernel.name} lies the other way round than peft has it: {MERGED}")
    return Theirs(kernel.name.removesuffix(".weight") + SUFFIXES[name], axes)
