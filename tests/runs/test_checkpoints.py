import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.core.errors import InputError
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.checksums import SEAL, seal

MANIFEST = {"part": "llm_jax.experiment:Experiment", "name": "small_gpt", "steps": 10}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: optax.OptState
    average: dict | None = None


def state_at(step, width=8, average=False):
    params = {"block": {"w": jnp.full((16, width), step, jnp.float32)}, "b": jnp.arange(8, dtype=jnp.bfloat16)}
    return State(jnp.int32(step), params, optax.adamw(1e-3).init(params), params if average else None)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def template(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def make(tmp_path, notes):
    """Opens the checkpoints anew, as a new process would."""
    opened = []

    def make(**options):
        opened.append(Checkpoints(tmp_path / "checkpoints", MANIFEST, note=notes.append, **options))
        return opened[-1]

    yield make
    for checkpoints in opened:
        checkpoints._worker.shutdown()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints 1, 2 and 3, to be copied."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(folder, MANIFEST, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_at(step), {"at": [step]}, {"loss": 1 / step})
    return folder


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "checkpoints")


def test_restores_what_was_saved(make, notes):
    with make() as checkpoints:
        checkpoints.save(7, state_at(7), {"at": [7, "x"]}, {"loss": 0.1, "accuracy": jnp.float32(0.5)})
    found = make().restore(template(state_at(0)))
    assert isinstance(found.state, State) and notes == []
    same(found.state, state_at(7))
    assert (found.step, found.data, found.metrics) == (7, {"at": [7, "x"]}, {"loss": 0.1, "accuracy": 0.5, "step": 7})
    assert found.manifest == MANIFEST


def test_nothing_saved_is_nothing_restored(make, notes):
    assert make().restore(template(state_at(0))) is None and notes == []
    with pytest.raises(InputError, match="train first"):
        make().restore_params(template(state_at(0).params))


def test_the_state_may_be_donated_while_it_is_saved(make):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = advance({"w": jnp.zeros((512, 1024))})
    with make() as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(5):
            state = advance(state)
    same(make().restore(template(state)).state, {"w": np.ones((512, 1024), np.float32)})


def test_restores_across_layouts(make):
    devices = np.array(jax.devices())
    assert len(devices) == 8
    meshes = [jax.sharding.Mesh(devices, "a"), jax.sharding.Mesh(devices.reshape(2, 4), ("a", "b"))]
    specs = [PartitionSpec("a"), PartitionSpec("b", "a")]
    layouts = [*(NamedSharding(m, s) for m, s in zip(meshes, specs, strict=True)), None]
    state = {"w": jnp.arange(64 * 8, dtype=jnp.float32).reshape(64, 8)}
    with make(keep_last=9) as checkpoints:
        for step, layout in enumerate(layouts, 1):
            checkpoints.save(step, state if layout is None else jax.device_put(state, layout), {}, {})
            for target in layouts:
                found = checkpoints.restore(template(state, target))
                assert found.step == step
                same(found.state, state)
                if target is not None:
                    assert found.state["w"].sharding == target


def test_loads_the_params_alone_or_their_average(make):
    with make() as checkpoints:
        checkpoints.save(3, state_at(3, average=True), {}, {})
    wanted = template(state_at(0).params)
    for name in ("params", "average"):
        same(make().restore_params(wanted, name).state, state_at(3).params)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), wanted)
    assert make().restore_params(half).state["block"]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda: state_at(0, width=4), r"checkpoint 3 in .* has params.block.w of shape \(16, 8\), not \(16, 4\)"),
        (lambda: state_at(0, average=True), "has no 'average.b': choose from opt, params, step$"),
        (lambda: dataclasses.replace(state_at(0), opt=()), "which is not in this experiment's state"),
        (lambda: dataclasses.replace(state_at(0), step=jnp.float32(0)), "has step of type int32, not float32"),
    ],
)
def test_refuses_another_state(folder, make, other, message):
    with pytest.raises(InputError, match=message):
        make().restore(template(other()))


def test_keeps_the_last_and_the_best(make):
    losses = {1: 3.0, 2: 0.5, 3: 0.6, 4: 2.0, 5: float("nan"), 6: 1.0, 7: 0.7}
    with make(keep_last=2, keep_best=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, {"loss": loss})
    assert make().steps() == [2, 3, 6, 7]
    assert {path.name for path in make().folder.iterdir()} == {f"{step:08d}" for step in (2, 3, 6, 7)}


def best_of(checkpoints):
    return checkpoints.restore_params(jax.ShapeDtypeStruct((2,), jnp.float32), "w", "best").step


def test_the_best_is_among_those_that_were_evaluated_at_their_own_step(make):
    """Of a reward, the loss is negative."""
    measured = {1: {}, 2: {"loss": -1.0, "step": 2}, 3: {"loss": -2.0, "step": 2}, 4: {"loss": 0.5, "step": 4}}
    with make(keep_last=1) as checkpoints:
        for step, metrics in measured.items():
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, metrics)
    assert make().steps() == [2, 4] and best_of(make()) == 2


def test_the_best_by_another_metric_may_be_the_highest(make):
    with make(keep_last=1, best_by="accuracy", best_mode="max") as checkpoints:
        for step, (loss, accuracy) in enumerate([(1.0, 0.5), (3.0, 0.75), (2.0, 0.25)], 1):
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, {"loss": loss, "accuracy": accuracy, "step": step})
    assert make().steps() == [2, 3]
    assert best_of(make(best_by="accuracy", best_mode="max")) == 2 and best_of(make()) == 3


def forget_step(folder, step):
    """As an older version wrote the metrics of a checkpoint."""
    path = folder / f"{step:08d}"
    metrics = json.loads((path / "metrics.json").read_text())
    del metrics["step"]
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "checksums.sha256").unlink()
    seal(path)


def test_a_metric_of_an_unknown_step_is_the_best_only_among_its_like(make, notes):
    with make(keep_last=3, keep_best=3) as checkpoints:
        for step, loss in {1: 0.5, 2: 0.25, 3: 1.0}.items():
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, {"loss": loss})
    for step in (1, 2):
        forget_step(make().folder, step)
    assert best_of(make()) == 3 and notes == []
    forget_step(make().folder, 3)
    assert best_of(make()) == 2 and "do not say which step their loss is of: taking 2" in notes[0]
    with make(keep_last=1, keep_best=2) as checkpoints:
        checkpoints.save(4, {"w": jnp.zeros(2)}, {}, {"loss": 2.0})
        checkpoints.save(5, {"w": jnp.zeros(2)}, {}, {"loss": 0.1, "step": None})  # carried on by a resumed run
        checkpoints.save(6, {"w": jnp.zeros(2)}, {}, {"loss": 3.0})
        checkpoints.save(7, {"w": jnp.zeros(2)}, {}, {})
    assert make().steps() == [4, 6, 7] and best_of(make()) == 4


def test_no_best_among_those_saved_between_evaluations(make):
    with make() as checkpoints:
        for step in (40, 80):
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, {"loss": 1.0, "step": 60} if step == 80 else {})
    with pytest.raises(InputError, match=r"has its own loss, .* multiple of eval_every, or choose newest or 40 or 80$"):
        best_of(make())


def test_a_step_that_was_saved_is_left_alone(make):
    with make() as checkpoints:
        checkpoints.save(1, state_at(1), {}, {})
        checkpoints.wait()
        before = (checkpoints.folder / "00000001").stat().st_ctime_ns
        checkpoints.save(1, state_at(1), {}, {})
        checkpoints.wait()
        assert (checkpoints.folder / "00000001").stat().st_ctime_ns == before


# -------------------------------------------------------------------------------------------------------------- damage


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    "deleted": lambda path, rng: path.unlink(),
    "longer": lambda path, rng: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_is_detected(folder, make, notes, kind):
    rng = random.Random(0)
    everything = sorted(path for path in (folder / "00000003").rglob("*") if path.is_file())
    files = [path for path in everything if path.stat().st_size or kind == "deleted"]
    assert {SEAL, "manifest.json", "data.json", "metrics.json"} <= {p.name for p in files} and len(files) > 8
    for file in files:
        whole = file.read_bytes()
        DAMAGES[kind](file, rng)
        notes.clear()
        assert make()._newest_sound() == 2, file
        assert len(notes) == 1 and "checkpoint 3 is damaged" in notes[0] and notes[0].endswith("using checkpoint 2")
        assert "\n" not in notes[0] and file.name in notes[0]
        file.write_bytes(whole)
    assert make()._newest_sound() == 3


def test_goes_on_from_the_sound_one_and_replaces_the_damaged(folder, make, notes):
    flip(folder / "00000003" / "data.json", random.Random(1))
    with make(keep_last=2, keep_best=0) as checkpoints:
        found = checkpoints.restore(template(state_at(0)))
        assert found.step == 2
        same(found.state, state_at(2))
        checkpoints.save(3, state_at(3), {"at": [3]}, {"loss": 0.3})
    assert make().steps() == [2, 3]
    assert make().restore(template(state_at(0))).data == {"at": [3]}


def test_damaged_ones_do_not_count_as_kept(folder, make):
    flip(folder / "00000003" / "data.json", random.Random(1))
    with make(keep_last=2, keep_best=0) as checkpoints:
        checkpoints.restore(template(state_at(0)))
        checkpoints.save(4, state_at(4), {}, {})
    assert make().steps() == [2, 4]


def test_never_starts_again_in_silence(folder, make):
    for step in (1, 2, 3):
        (folder / f"{step:08d}" / SEAL).unlink()
    with pytest.raises(InputError, match=r"is sound: checkpoint 3 is damaged \(checksums.sha256 is missing\)"):
        make().restore(template(state_at(0)))


def test_a_first_save_cut_short_starts_from_the_beginning_saying_so(folder, make, notes):
    for step in (1, 2):
        shutil.rmtree(folder / f"{step:08d}")
    (folder / "00000003").rename(folder / "00000003.saving")
    assert make().restore(template(state_at(0))) is None
    assert len(notes) == 1 and "checkpoint 3 is only half saved" in notes[0] and "from the beginning" in notes[0]
    with make() as checkpoints:
        checkpoints.save(3, state_at(3), {}, {})
    assert [path.name for path in folder.iterdir()] == ["00000003"]


KILLED = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.pytrees import _orbax
_orbax()  # imported before forking, since that is the slow part; no device is started before
warnings.filterwarnings("ignore", message="os.fork")
folder, rng, best = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0
state = lambda step: {"w": jnp.full((256, 64), step, jnp.float32), "v": {str(i): jnp.int32(step) for i in range(8)}}

def child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
    return pid

def resume(checkpoints):
    found = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    step = 0 if found is None else found.step
    if found is not None:
        assert found.data == {"at": step}
        jax.tree.map(np.testing.assert_array_equal, found.state, state(step))
    return step

def train():
    checkpoints = Checkpoints(folder, {}, keep_last=1, keep_best=0)
    for step in range(resume(checkpoints) + 1, 10_000):
        checkpoints.save(step, state(step), {"at": step}, {})
        (folder / "saved").write_text(str(step - 1))  # save() waits for the one before

def check():
    step, told = resume(Checkpoints(folder, {})), int((folder / "saved").read_text() or 0)
    assert step >= told, (step, told)
    print(step, flush=True)

(folder / "saved").write_text("0")
for _ in range(int(sys.argv[3])):
    pid = child(train)
    time.sleep(0.8 + rng.random() * 0.7)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.waitpid(child(check), 0)[1] == 0
"""


def test_a_sound_checkpoint_survives_sigkill_at_any_moment(tmp_path):
    (tmp_path / "c").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "c"), "0", "8"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [int(word) for word in done.stdout.split()]
    assert steps == sorted(steps) and len(steps) == 8 and steps[-1] > 8, done.stdout


def test_a_full_disk_is_one_line_and_loses_nothing(make, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with make() as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((4, 4))}, {}, {})
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            checkpoints.save(2, {"w": jnp.ones((512, 512))}, {}, {})
            with pytest.raises(InputError, match=r"no space left .*: step 2 was not saved in .* \(step 1 is\); free"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001"]
        checkpoints.save(2, {"w": jnp.ones((512, 512))}, {}, {})
    assert make().steps() == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_other_errors_are_not_taken_for_a_full_disk(make, monkeypatch):
    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    with make() as checkpoints:
        monkeypatch.setattr("llm_jax.runs.checkpoints.seal", broken)
        checkpoints.save(1, {"w": jnp.ones(2)}, {}, {})
        with pytest.raises(InputError, match=r"^step 1 was not saved in \S+: Input/output error$"):
            checkpoints.wait()


def test_the_loop_is_not_held_up(make):
    state = {str(i): jnp.ones((1024, 1024)) for i in range(16)}
    with make() as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {}, {})
        checkpoints.wait()
        begun = time.monotonic()
        checkpoints.save(2, state, {}, {})
        blocked = time.monotonic() - begun
        checkpoints.wait()
        assert blocked < (time.monotonic() - begun) / 2
    assert json.loads((checkpoints.folder / "00000002" / "manifest.json").read_text()) == MANIFEST


# ------------------------------------------------------------------------------------------------------------ clean-up


STRANGERS = {
    "a folder with a number for a name": lambda folder: (folder / "99").mkdir(),
    "a folder named by a digit of another alphabet": lambda folder: (folder / "²").mkdir(),
    "a folder of eight such digits": lambda folder: (folder / "١٢٣٤٥٦٧٨").mkdir(),
    "a file with the name of a later checkpoint": lambda folder: (folder / "00000009").write_text("mine"),
    "a link to nowhere": lambda folder: (folder / "00000009").symlink_to("nowhere"),
    "a file that is no half-saved checkpoint": lambda folder: (folder / "notes.saving").write_text("mine"),
    "what a file manager leaves": lambda folder: (folder / ".DS_Store").write_text("mine"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_checkpoint_is_left_alone(folder, make, notes, kind):
    before = {path.name for path in folder.iterdir()}
    STRANGERS[kind](folder)
    (strange,) = {path.name for path in folder.iterdir()} - before
    with make(keep_last=1, keep_best=0) as checkpoints:
        assert checkpoints.restore(template(state_at(0))).step == 3
        checkpoints.save(4, state_at(4), {}, {})
    assert notes == [] and {path.name for path in folder.iterdir()} == {"00000004", strange}
    assert make().steps() == [4] and make()._newest_sound() == 4


@pytest.mark.parametrize("of", ["file", "link"])
def test_a_checkpoint_takes_its_place_from_what_is_none(folder, make, notes, of):
    here = folder / "00000004"
    here.write_text("not a checkpoint") if of == "file" else here.symlink_to("nowhere")
    with make(keep_last=1, keep_best=0) as checkpoints:
        checkpoints.save(4, state_at(4), {}, {})
    assert [path.name for path in folder.iterdir()] == ["00000004"] and notes == []
    same(make().restore(template(state_at(0))).state, state_at(4))


def test_of_a_link_the_link_alone_is_removed(folder, make, notes, tmp_path):
    elsewhere = (folder / "00000003").rename(tmp_path / "on another disk")
    (folder / "00000003").symlink_to(elsewhere)
    with make(keep_last=1, keep_best=0) as checkpoints:
        same(checkpoints.restore(template(state_at(0))).state, state_at(3))
        checkpoints.save(4, state_at(4), {}, {})
    assert [path.name for path in folder.iterdir()] == ["00000004"] and notes == []
    assert (elsewhere / SEAL).exists()


def refusing(function, name):
    """`function`, with what happens where files belong to another user, or are open on NFS."""

    def refuse(path, *arguments, **options):
        if name in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *arguments, **options)

    return refuse


@pytest.mark.parametrize("call", ["os.replace", "os.unlink"])
def test_what_cannot_be_removed_is_one_line_and_training_goes_on(folder, make, notes, monkeypatch, call):
    name = {"os.replace": "00000001", "os.unlink": "data.json"}[call]
    with monkeypatch.context() as patch:
        patch.setattr(call, refusing({"os.replace": os.replace, "os.unlink": os.unlink}[call], name))
        with make(keep_last=3, keep_best=0) as checkpoints:
            for step in (4, 5):
                checkpoints.save(step, state_at(step), {"at": step}, {})
        assert make().steps()[-3:] == [3, 4, 5]
    told = [line for line in notes if "00000001" in line]
    assert len(told) == 1 and "cannot be removed (Permission denied)" in told[0] and "\n" not in told[0]
    with make(keep_last=3, keep_best=0) as checkpoints:  # at a restart nothing is worse, and it goes when it can
        assert checkpoints.restore(template(state_at(0))).data == {"at": 5}
        checkpoints.save(6, state_at(6), {}, {})
    assert sorted(path.name for path in folder.iterdir()) == [f"{step:08d}" for step in (4, 5, 6)]


def test_what_a_killed_session_left_and_cannot_be_removed_is_in_nobodys_way(folder, make, notes, monkeypatch):
    (folder / "00000003").rename(folder / "00000004.saving")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(os.unlink, "data.json"))
        with make(keep_last=3) as checkpoints:
            checkpoints.save(4, state_at(4), {"at": 4}, {})
    assert len(notes) == 1 and "00000004.saving cannot be removed" in notes[0]
    assert make().restore(template(state_at(0))).data == {"at": 4}


# ------------------------------------------------------------------------------------------------ beside a training

TRAINER = """
import sys, time
from pathlib import Path
import jax.numpy as jnp
from llm_jax.runs.checkpoints import Checkpoints
with Checkpoints(Path(sys.argv[1]), {}, keep_last=1, keep_best=1, best_by="loss") as checkpoints:
    for step in range(1, 100_000):
        params = {str(i): jnp.full((64, 64), step, jnp.float32) for i in range(8)}
        checkpoints.save(step, {"params": params}, {"at": step}, {"loss": -step})
        time.sleep(0.1)  # some readings are disturbed, and never twenty in a row, on a busy machine either
"""


@pytest.fixture(scope="module")
def in_training(tmp_path_factory):
    """The checkpoints of a training in another process that saves, and removes what it saved before, all the time."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(folder)], cwd=Path(__file__).parents[2])
    while not any(folder.glob("*3")):
        time.sleep(0.1)
        assert trainer.poll() is None
    yield folder
    trainer.kill()
    trainer.wait()


@pytest.mark.parametrize("which", ["newest", "best"])
@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tasks of a load that Orbax gave up
def test_a_run_can_be_read_while_it_trains(in_training, monkeypatch, which, locks):
    """Also on a file system without locks, where checkpoints are removed while they are read."""
    if not locks:
        monkeypatch.setattr("fcntl.flock", refusing(lambda *_: None, ""))
    notes, seen = [], []
    wanted = {str(i): jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(8)}
    while len(seen) < 8 or len(set(seen)) < 4:
        found = Checkpoints(in_training, {}, note=notes.append).restore_params(wanted, which=which)
        for leaf in found.state.values():
            np.testing.assert_array_equal(leaf, np.full((64, 64), found.step))
        assert found.data == {"at": found.step}
        seen.append(found.step)
    assert notes == [] and seen == sorted(seen)
    gc.collect()  # those tasks, before another test begins
