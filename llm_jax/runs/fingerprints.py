"""What a checkpoint was saved beside: the files of its run that its results depend on, and that it does not hold.

Its checksums cover its own files. Of the run's tokenizer and of what is frozen it keeps the hashes (`beside.json`), and
of the experiment a copy, so whatever of the three was changed since is refused rather than trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import digest, parse_json
from llm_jax.core.parts import show
from llm_jax.experiment import Experiment
from llm_jax.runs.checkpoint_files import checkpoint_path, saved_steps
from llm_jax.runs.checksums import SEAL
from llm_jax.runs.folder import MAY_DIFFER, Run, differences
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer


def beside(run: Run) -> dict[str, str | None]:
    """The hashes of the run's tokenizer and of what is frozen, as they are now; None of what there is not."""
    tokenizer = [run.tokenizer / name for name in ("tokenizer.json", "special.json")]
    return dict(tokenizer=_hash(*tokenizer), frozen=_hash(checkpoint_path(run.frozen, 0) / SEAL))


def run_tokenizer(run: Run) -> Tokenizer:
    """The tokenizer of a run, which is the one that its checkpoints were saved with.

    Raises:
      InputError: it is another one, or there is none yet.
    """
    if not run.has_tokenizer and not saved_steps(run.checkpoints):
        raise InputError(f"no checkpoint in {run.checkpoints}: train first")
    for step in reversed(saved_steps(run.checkpoints)):
        try:
            saved = parse_json((checkpoint_path(run.checkpoints, step) / "beside.json").read_bytes())
        except (OSError, ValueError):
            continue  # of an older version, removed meanwhile, or damaged, which is told when it is loaded
        if isinstance(saved, dict):
            check_files(run, step, {"tokenizer": saved.get("tokenizer")})
            break
    return load_tokenizer(run.tokenizer)


def check_files(run: Run, step: int, saved: Mapping[str, str | None]) -> None:
    """Nothing, if the files of the run are those that its checkpoint of this step was saved beside.

    Raises:
      InputError: some are not; the message says which.
    """
    now = beside(run)
    for name, folder in dict(tokenizer=run.tokenizer, frozen=run.frozen).items():
        if saved.get(name) is not None and now[name] != saved[name]:
            if now[name] is None:
                what = "missing, which the checkpoints of this run need"
            else:
                what = f"not as it was when checkpoint {step} was saved"
            raise InputError(f"{folder} is {what}: put back what was there, or start in another --workdir")


def check_belongs(
    run: Run, experiment: Experiment, step: int, manifest: Mapping[str, Any], saved: Mapping[str, str | None]
) -> None:
    """Nothing, if a checkpoint is of the run as it is now.

    Args:
      experiment: the run's own, filled in.
      manifest, saved: what the checkpoint has of it, and of the files beside it.

    Raises:
      InputError: a setting that a resumed run may not change is another one, or such a file is.
    """
    check_files(run, step, saved)
    for path, was, now in differences(manifest, experiment.manifest()):
        free = any(path == setting or path.startswith(f"{setting}.") for setting in MAY_DIFFER)
        if not free and _has(manifest, path) and not _same_number(was, now):
            raise InputError(
                f"{run.workdir / 'manifest.json'} is not as it was when checkpoint {step} was saved: {path} was "
                f"{show(was)}, not {show(now)}; put {checkpoint_path(run.checkpoints, step) / 'manifest.json'} in its "
                "place"
            )


def _hash(*files: Any) -> str | None:
    try:
        return digest(*(file.read_bytes() for file in files))
    except OSError:
        return None


def _has(manifest: Any, path: str) -> bool:
    """Whether the setting was known to the version that wrote the manifest."""
    for name in path.split("."):
        if isinstance(manifest, list):
            manifest = dict(enumerate(manifest)).get(int(name))
        elif not isinstance(manifest, Mapping) or name not in manifest:
            return False
        else:
            manifest = manifest[name]
    return True


def _same_number(was: Any, now: Any) -> bool:
    """A whole number may have been given for a float."""
    return {type(was), type(now)} <= {int, float} and was == now
