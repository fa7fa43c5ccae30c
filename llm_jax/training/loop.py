"""The one loop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.parts import check
from llm_jax.core.runtime import set_up
from llm_jax.core.workers import not_in_worker
from llm_jax.engine.check import check_labels, check_openings
from llm_jax.engine.evaluation import best_mode, evaluate, means
from llm_jax.engine.init_from import begin, equip, first_tokenizer, inherit
from llm_jax.engine.labels import with_labels
from llm_jax.engine.step import Program, TrainState, fill
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Experiment
from llm_jax.parallel.layout import place
from llm_jax.reports.base import check_reports, findings
from llm_jax.rl.author import HeldOut
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.disk import space_for
from llm_jax.runs.fingerprints import beside, check_belongs, run_tokenizer
from llm_jax.runs.folder import Run
from llm_jax.runs.frozen import keep, kept
from llm_jax.runs.metrics import MetricsLog, append, cut, read
from llm_jax.runs.record import record
from llm_jax.runs.resume import resumed
from llm_jax.text.tokenizer import Tokenizer
from llm_jax.training.display import Display
from llm_jax.training.interrupt import GivenUp, Interrupt
from llm_jax.training.throughput import Speed


def train(experiment: Experiment, workdir: str | Path) -> TrainState:
    """Runs to the last step, from the newest sound checkpoint if there is one. Returns the state of the last step.

    Without one it begins with parameters drawn from the seed, or with those of the run that `init_from` names.

    At the end comes what the experiment's `report` asks for.

    On Ctrl-C, SIGTERM or SIGHUP (unless it was ignored, as under nohup) the step is finished and saved. Then nothing is
    returned, so that what was to come after the training does not: the same call goes on.

    Raises:
      InputError: the experiment, its data or the workdir cannot be used; a step had nothing to learn; or `patience`
        steps in a row were not finite.
      KeyboardInterrupt: it was stopped by Ctrl-C, and saved.
      SystemExit: it was stopped by SIGTERM (status 143) or SIGHUP (129), and saved.
      BrokenPipeError: the reader of its output is gone; it was saved.
    """
    not_in_worker()
    set_up()
    experiment = check_labels(check(experiment))
    experiment, said = resumed(inherit(experiment, workdir), workdir)
    experiment = with_labels(experiment, workdir)
    with Run.open(workdir, experiment.manifest()) as run:
        if said and jax.process_index() == 0:
            print(said, flush=True)
        print("reading the data ...", flush=True)
        tokenizer = prepare_tokenizer(experiment, run)
        experiment = fill(experiment, tokenizer)
        check_openings(experiment)
        program = Program(experiment, experiment.layout.mesh(), tokenizer)
        checkpoints = Checkpoints(
            run.checkpoints, experiment.manifest(), keep_last=experiment.keep_last, keep_best=experiment.keep_best,
            best_by=experiment.best_by, best_mode=best_mode(experiment),
            belongs=functools.partial(check_belongs, run, experiment),
        )  # fmt: skip
        with checkpoints, Display(experiment.steps) as display:
            return Training(program, tokenizer, run, checkpoints, display).run_to_end()


class Training:
    """One session of a training: from where the run stands to its last step."""

    def __init__(self, program: Program, tokenizer: Tokenizer, run: Run, checkpoints: Checkpoints, display: Display):
        self.program, self.tokenizer = program, tokenizer
        self.run, self.checkpoints, self.display = run, checkpoints, display
        self.experiment = program.experiment
        data = self.experiment.data
        objective = self.experiment.objective
        for split in ("train", "validation"):
            objective.check(self.experiment.model, data.documents(split))
        check_reports(Finished(self.experiment, tokenizer, params=None))
        self.batches = data.train(
            tokenizer, seed=self.experiment.seed, process=jax.process_index(), processes=jax.process_count(),
            program=program,
        )  # fmt: skip
        self.held_out = data.evaluation(tokenizer, process=jax.process_index(), processes=jax.process_count())
        self.evaluated: dict[str, float | None] = {}  # the newest evaluation, with the step it is of (None: unknown)
        self.weighed: tuple[int, Any] = (0, 1.0)  # the newest step, and what its targets weigh

    def run_to_end(self) -> TrainState:
        with jax.set_mesh(self.program.mesh), contextlib.closing(self.batches):
            state = self._resume()
            begun = int(state.step)
            if begun < self.experiment.steps and jax.process_index() == 0:
                record(self.run, begun)
            self.speed = Speed(self.program)
            self.display.note(self.speed.introduction())
            if unmeasured := _unmeasured(self.experiment):
                self.display.note(unmeasured)
            cut(self.run.completions, begun)
            with MetricsLog(self.run.metrics, self.run.events, begun or None) as self.metrics:
                with Interrupt() as interrupt:
                    state = self._steps(begun, state, interrupt)
                    self._save(int(state.step), state)
                    if interrupt.requested or self.display.unread:
                        self.checkpoints.wait()
                        said = f"stopped and saved at step {int(state.step)}"
                        self.display.note(f"{said}: the same command goes on from there")
                        if not interrupt.requested:
                            raise BrokenPipeError
                        interrupt.leave(said)
                self._report(state)
        return state

    def _steps(self, begun: int, state: TrainState, interrupt: Interrupt) -> TrainState:
        """Those that are left, or as many as there are until somebody wants it to stop."""
        for step in range(begun + 1, self.experiment.steps + 1):
            try:
                batch = self.batches.next(state, interrupt.waiting())
            except GivenUp:
                break
            state = self._step(step, state, batch)
            if interrupt.requested or self.display.unread:
                break
        return state

    def _report(self, state: TrainState) -> None:
        """Shown as often as a finished run is asked for, written down once."""
        if not self.experiment.report:
            return
        written = [set(line) for line in read(self.run.metrics) if line["split"] == "report"]
        for finding in findings(self._finished(state)):
            self.display.note("\n".join(finding.lines))
            if finding.metrics and not any(finding.metrics.keys() <= names for names in written):
                self.metrics.write(int(state.step), "report", finding.metrics)
            for name, figure in finding.figures.items() if jax.process_index() == 0 else ():
                self.display.note(f"drawn: {self.run.draw(name, figure)}")

    def _finished(self, state: TrainState) -> Finished:
        params = self.program.merged(state.best, state.frozen)
        finished = Finished(self.experiment, self.tokenizer, params, self.program.beside(state.frozen))
        return equip(finished, self.program)

    def _resume(self) -> TrainState:
        template = self.program.template
        found = self.checkpoints.restore(dataclasses.replace(template, frozen=None))
        if found is None:
            state = begin(self.program)
            keep(self.run, state.frozen)
            return state
        self.batches.restore(found.data)
        self.evaluated = {"step": None, **found.metrics} if found.metrics else {}  # older versions wrote no step
        self.display.note(f"going on from step {found.step}")
        return dataclasses.replace(found.state, frozen=kept(self.run, template.frozen))

    def _step(self, step: int, state: TrainState, batch: HostBatch) -> TrainState:
        experiment, last = self.experiment, step == self.experiment.steps
        state, metrics = self.program.update(state, place(batch, self.program.mesh))
        self._demand_targets()  # of the step before: it is computed, so the device need not wait for the answer
        self.weighed = step, metrics["weight"]
        self.speed.step(state)
        if step % experiment.log_every == 0 or last:
            self._log(step, state, metrics)
        if step % experiment.eval_every == 0 or last:
            self._demand_targets()
            with self.speed.paused():
                measured = evaluate(self.program, state.best, self.held_out, state.frozen)
                self._write(step, "validation", measured)
                self._show_completions(step)
                self.evaluated = measured | {"step": step}
                self._demand_best(step, state)
        if step % experiment.save_every == 0:
            with self.speed.paused():
                self._save(step, state)
        return state

    def _demand_best(self, step: int, state: TrainState) -> None:
        """Nothing, if the evaluation measured what the best checkpoint goes by.

        Raises:
          InputError: it did not. The state is saved.
        """
        if self.experiment.keep_best and (by := self.experiment.best_by) not in self.evaluated:
            self._save(step, state)
            self.checkpoints.wait()
            raise InputError(
                f"best_by: the evaluation measures no {by!r}: {nearest(by, self.evaluated.keys() - {'step'})} "
                f"(step {step} is saved: the same command goes on from there)"
            )

    def _demand_targets(self) -> None:
        """Nothing, if the newest step had a target to learn. (A weight that is no number is left to `patience`.)

        Raises:
          InputError: it had none.
        """
        step, weight = self.weighed
        if float(weight) == 0:
            raise InputError(
                f"nothing is learnt in step {step}, every target of its batch has weight 0: data.packing=BestFit() "
                "leaves such pieces out; or raise data.length or data.batch, or set data.rendering.learn='everything'"
            )

    def _log(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        self._demand_targets()
        streak = int(state.longest_streak)
        if streak >= self.experiment.patience:
            raise InputError(
                f"the loss, gradient or update was not finite in {streak} steps in a row, up to step {step}: lower "
                "optimizer.learning_rate, or look at the data and the optimizer's other settings; "
                f"{self._newest()} is kept"
            )
        found = dict(loss=float("nan")) if streak and not float(state.sums["weight"]) else self._means(state)
        found |= dict(
            learning_rate=float(metrics["learning_rate"]),
            gradient_norm=float(metrics["gradient_norm"]),
            skipped_steps=int(state.skipped),
        )
        found |= self.speed.since_last()
        with self.speed.paused():  # the first time TensorBoard's writer is imported, and torch if it is there
            self._write(step, "train", found)

    def _means(self, state: TrainState) -> dict[str, float]:
        objective = self.experiment.objective
        return means(state.sums, objective.likelihood)

    def _newest(self) -> str:
        steps = self.checkpoints.steps()
        return f"the checkpoint of step {steps[-1]}" if steps else "no checkpoint"

    def _write(self, step: int, split: str, found: dict[str, Any]) -> None:
        if jax.process_index() == 0:
            self.metrics.write(step, split, found)
            self.display.log(step, split, found)

    def _show_completions(self, step: int) -> None:
        """What the model completed in the evaluation, where that asks it to."""
        samples = self.held_out.samples if isinstance(self.held_out, HeldOut) else []
        if samples and jax.process_index() == 0:
            append(self.run.completions, step, samples)
            lines = [f"  reward {s['reward']:.4g}  {s['prompt']!r} -> {s['completion']!r}" for s in samples]
            self.display.note("\n".join(lines))

    def _save(self, step: int, state: TrainState) -> None:
        self._demand_targets()
        alone = dataclasses.replace(state, frozen=None)
        self.checkpoints.save(step, alone, self.batches.save(), self.evaluated, beside(self.run))


def prepare_tokenizer(experiment: Experiment, run: Run) -> Tokenizer:
    """The run's own tokenizer: the first time that of `init_from`, or one trained on the training documents."""
    if run.has_tokenizer:
        return run_tokenizer(run)
    tokenizer = first_tokenizer(experiment)
    keep_tokenizer(tokenizer, run)
    return tokenizer


def keep_tokenizer(tokenizer: Tokenizer, run: Run) -> None:
    """Puts it in the run's folder, whole or not at all."""
    with space_for(f"the tokenizer is not in {run.tokenizer}"):
        tokenizer.save(run.tokenizer)


def _unmeasured(experiment: Experiment) -> str | None:
    """What is to be said of checkpoints that are saved between two evaluations."""
    if not experiment.keep_best or experiment.save_every % experiment.eval_every == 0:
        return None
    both = math.lcm(experiment.save_every, experiment.eval_every)
    which = "the last step" if both >= experiment.steps else f"every {both} steps and the last one"
    return (
        f"save_every={experiment.save_every} is no multiple of eval_every={experiment.eval_every}: the best checkpoint "
        f"is chosen among those that were evaluated at their own step ({which})"
    )
