"""Pictures as data: the packaged digits, batches that hold each picture beside its own caption, and exact resuming."""

import dataclasses
import itertools
import json
import pickle
import sys
from typing import Any, cast

import jax
import numpy as np
import pytest
from PIL import Image

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Picture, Rendering, Text
from llm_jax.data.images import NAMES, Digits, ImageFolder, Images
from llm_jax.data.packing import BestFit, One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Mixture, Source
from llm_jax.data.split import ByHash, LastDocuments
from llm_jax.layers.pooling import Mean
from llm_jax.layers.positions import Learned
from llm_jax.models.vision import ImageClassifier, Patches


@dataclasses.dataclass(frozen=True)
class Squares(Source):
    """`count` pictures that differ in their pixels, but have two captions between them."""

    count: int = 10
    first: int = 0
    side: int = 2
    captions: tuple[str, ...] = ("even", "odd one")

    def documents(self):
        for i in range(self.first, self.first + self.count):
            caption = self.captions[i % 2]
            yield Picture(np.full((self.side, self.side, 1), i, np.float32), caption, i % 2)


@dataclasses.dataclass(frozen=True)
class Blurb(Source):
    def documents(self):
        yield from (Text("one"), Text("two"))


def captions(batch, tokenizer):
    """What each row's targets say."""
    kept = [row[weight > 0][:-1] for row, weight in zip(batch["targets_BT"], batch["weight_BT"], strict=True)]
    return [tokenizer.decode(row.tolist()) for row in kept]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_digits_are_scikit_learns():
    known = "sklearn" in sys.modules
    found: list[Any] = list(Digits("it is {}").documents())
    assert ("sklearn" in sys.modules) == known, "it is read, not imported"
    wanted = pytest.importorskip("sklearn.datasets").load_digits()
    np.testing.assert_array_equal(np.stack([d.image_YXA[..., 0] for d in found]) * 16, wanted.images)
    assert [d.label for d in found] == wanted.target.tolist() and len(found) == 1797
    assert [d.caption for d in found] == [f"it is {NAMES[n]}" for n in wanted.target]
    assert found[0].image_YXA.dtype == np.float32 and found[0].image_YXA.shape == (8, 8, 1)


def test_every_picture_once_an_epoch_beside_its_own_caption(tokenizer):
    data = Images(Squares(12), length=10, batch=4, split=ByHash(0.0))
    stream = data.train(tokenizer, seed=1)
    epochs = []
    for _ in range(2):
        batches = [next(stream) for _ in range(3)]
        epochs.append([int(i) for b in batches for i in b["image_BYXA"][:, 0, 0, 0]])
        for batch in batches:
            number_B = batch["image_BYXA"][:, 0, 0, 0].astype(int)
            assert batch["image_BYXA"].shape == (4, 2, 2, 1) and batch["image_BYXA"].dtype == np.float32
            assert (batch["image_BYXA"] == number_B[:, None, None, None]).all()
            assert batch["label_B"].tolist() == (number_B % 2).tolist() and batch["label_B"].dtype == np.int32
            assert captions(batch, tokenizer) == [("even", "odd one")[n % 2] for n in number_B]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12)) and epochs[0] != epochs[1]
    assert {name: x.shape[1:] for name, x in data.blank(3).items()} == {n: x.shape[1:] for n, x in batch.items()}
    assert {name: x.dtype for name, x in data.blank(3).items()} == {n: x.dtype for n, x in batch.items()}


def test_evaluation_has_every_held_out_picture_once_and_no_class_in_padding(tokenizer):
    data = Images(Squares(12), length=10, batch=4, split=LastDocuments(0.5))
    batches = list(data.evaluation(tokenizer))
    label_B = np.concatenate([b["label_B"] for b in batches])
    assert label_B.tolist() == [0, 1, 0, 1, 0, 1, -1, -1]
    number_B = np.concatenate([b["image_BYXA"][:, 0, 0, 0] for b in batches])
    assert number_B.tolist() == [6, 7, 8, 9, 10, 11, 0, 0] and (batches[1]["segment_BT"][2:] == -1).all()


def test_a_picture_without_a_caption_counts_where_others_have_one(tokenizer):
    data = Images(Squares(12, captions=("", "odd one")), length=10, batch=4, split=LastDocuments(0.5))
    evaluated = np.concatenate([b["label_B"] for b in data.evaluation(tokenizer)])
    assert evaluated.tolist() == [0, 1, 0, 1, 0, 1, -1, -1]


def test_a_mixture_of_pictures(tokenizer):
    source = Mixture((Squares(6), Squares(4, first=20)), (1.0, 1.0))
    data = Images(source, length=10, batch=4, split=ByHash(0.0))
    for batch in itertools.islice(data.train(tokenizer, seed=0), 4):
        number_B = batch["image_BYXA"][:, 0, 0, 0].astype(int)
        assert (number_B >= 20).sum() == 2
        assert captions(batch, tokenizer) == [("even", "odd one")[n % 2] for n in number_B]


def test_resuming_is_exact_and_processes_share_a_batch(tokenizer):
    data = Images(Squares(12), length=10, batch=4, split=ByHash(0.0))
    stream = data.train(tokenizer, seed=1)
    seen = [next(stream) for _ in range(5)]
    state = json.loads(json.dumps(stream.save()))
    again, first, second = (
        data.train(tokenizer, seed=1),
        data.train(tokenizer, seed=1, process=0, processes=2),
        data.train(tokenizer, seed=1, process=1, processes=2),
    )
    again.restore(state)
    same(next(again), next(stream))
    for whole in seen:
        a, b = next(first), next(second)
        same({name: np.concatenate([a[name], b[name]]) for name in a}, whole)
    changed = Images(Squares(12, first=2), length=10, batch=4, split=ByHash(0.0)).train(tokenizer, seed=1)
    with pytest.raises(InputError, match="the state of the data is of another stream"):
        changed.restore(state)  # the captions are the same: only the pixels differ


def test_what_a_worker_is_sent(tokenizer):
    batches: Any = Images(Squares(12), length=10, batch=4, split=ByHash(0.0)).train(tokenizer, seed=1)._batches
    same(pickle.loads(pickle.dumps(batches))[7], batches[7])


def test_pictures_are_parted_by_their_pixels():
    pictures: list[Any] = list(Squares(400).documents())
    train, validation = (cast(list[Any], part) for part in ByHash(0.2)(pictures))
    assert len(train) + len(validation) == 400 and 50 < len(validation) < 110
    assert {d.caption for d in validation} == {d.caption for d in train} == {"even", "odd one"}
    reordered: Any = ByHash(0.2)(list(Squares(400, captions=("other", "names")).documents())[::-1])[1]
    assert {d.identity() for d in reordered} == {d.identity() for d in validation}


BAD = [
    (lambda: Images(Squares(), packing=BestFit()), r"an image has a row of its own: data.packing must be One\(\)"),
    (lambda: Images(Blurb(), split=LastDocuments(0.5)), "Images needs pictures, not a Text: use data=Data"),
    (
        lambda: Images(Mixture((Squares(), Squares(side=3, first=20)), (1.0, 1.0)), split=LastDocuments(0.5)),
        r"pictures must have one size, not \(2, 2, 1\) and \(3, 3, 1\): scale them",
    ),
    (
        lambda: Images(Squares(captions=("", "odd")), rendering=Rendering(bos=False, eos=False)),
        "a picture without a caption has no tokens",
    ),
    (lambda: Images(Squares(), length=4, split=LastDocuments(0.5)), "longer than a row"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_line(make, message, tokenizer):
    with pytest.raises(InputError, match=message) as raised:
        data = make()
        data.train(tokenizer, seed=0)
    assert "\n" not in str(raised.value)


def test_captions_alone_are_texts(tokenizer):
    """`Data` takes pictures as their captions, whatever the packing."""
    batch = next(Data(Squares(), length=10, batch=2, packing=One(), split=ByHash(0.0)).train(tokenizer, seed=0))
    assert "image_BYXA" not in batch and set(captions(batch, tokenizer)) <= {"even", "odd one"}


@pytest.fixture
def folder(tmp_path):
    """Images of three classes, of several sizes and modes, with a hidden file."""
    draw = np.random.default_rng(0)
    for name, mode, channels in (("cat", "RGB", 3), ("ant", "L", 0), ("dog", "RGBA", 4)):
        (tmp_path / name / "more").mkdir(parents=True)
        for i in range(4):
            shape = (5 + i, 7) if channels == 0 else (5 + i, 7, channels)
            image = Image.fromarray(draw.integers(0, 256, shape).astype(np.uint8), mode)
            image.save(tmp_path / name / ("more" if i else ".") / f"{i}.png")
    (tmp_path / "cat" / ".hidden").write_text("no image")
    return tmp_path


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_has_a_class_a_folder(folder, channels):
    source = ImageFolder(str(folder), 4, 6, channels)
    found: Any = list(source.documents())
    assert source.class_names() == ("ant", "cat", "dog")
    assert [(p.caption, p.label) for p in found] == [
        (n, i) for i, n in enumerate(source.class_names()) for _ in range(4)
    ]
    for picture in found:
        assert picture.image_YXA.shape == (4, 6, channels) and picture.image_YXA.dtype == np.float32
    with Image.open(folder / "cat" / "0.png") as image:
        wanted = np.asarray(image.convert("RGB" if channels == 3 else "L").resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[4].image_YXA, wanted.reshape(4, 6, channels))
    (folder / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"notes.txt is no image that can be read"):
        list(source.documents())
    for path, why in ((folder / "none", "No such file"), (folder / "cat" / "more", "there is no folder for a class")):
        with pytest.raises(InputError, match=why):
            list(ImageFolder(str(path), 4, 6).documents())


def test_pixels_are_normalized_as_the_data_says():
    raw = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    data = Images(Squares(), scale=1 / 255, mean=(0.1, 0.2, 0.3), deviation=(0.5,))
    np.testing.assert_allclose(data.normalized(raw), (raw / 255 - [0.1, 0.2, 0.3]) / 0.5, rtol=1e-6, atol=1e-7)
    plain = Images(Squares()).normalized(raw)
    assert np.array_equal(plain, raw) and plain.dtype == np.float32
    wrongs: Any = (dict(mean=(0.1, 0.2)), dict(deviation=()))
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"data\.\w+ has \d numbers, the images 3 channels: give one, or one each"):
            Images(Squares(), **wrong).normalized(raw)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_a_classifier_of_images_is_asked_as_it_was_trained(folder, tmp_path_factory):
    """Its scale, mean and deviation are in the run: what it is asked are pixels as in the source."""
    source = ImageFolder(str(folder), 8, 8)
    made: Any = llm_jax.get("digits_classifier")
    model: Any = made.model
    image = model.image.clone(patches=Patches(8, (8, 8), 4, 3), positions=Learned(4))
    data = Images(
        source, length=16, batch=4, split=ByHash(0.3), scale=1 / 255, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4)
    )
    run = made.override({"model": ImageClassifier(image, 3, Mean()), "data": data, "steps": 1, "layout.data": 1})
    workdir = tmp_path_factory.mktemp("images") / "run"
    llm_jax.train(run, workdir)
    lm = llm_jax.load(workdir)
    assert lm.labels == ("ant", "cat", "dog")
    pictures: Any = data.documents("validation")
    asked = [p.image_YXA for p in pictures]
    found = lm.classify(images=np.array(asked, np.uint8))
    kept: Any = lm.normalized
    score: Any = lm.model.apply({"params": lm.params}, kept(np.stack(asked)))
    np.testing.assert_allclose(found, jax.nn.softmax(score), atol=1e-6)
    rows = [batch["image_BYXA"][batch["label_B"] >= 0] for batch in data.evaluation(lm.tokenizer)]
    np.testing.assert_array_equal(np.concatenate(rows), kept(np.stack(asked)))
    assert np.abs(np.concatenate(rows)).max() < 5 < np.max(asked)
    refused: Any = (
        (dict(texts=["a"]), "an? ImageClassifier reads images, and no texts"),
        (dict(texts=["a"], images=asked), "an? ImageClassifier reads images, and no texts"),
        (dict(images=[np.zeros((8, 8, 3)), np.zeros((4, 4, 3))]), "images must be numbers"),
        (dict(images="cat.png"), "images must be numbers"),
        (dict(images=np.zeros((1, 4, 4, 3))), r"images have \(4, 4, 3\)"),
    )
    for wrong, why in refused:
        with pytest.raises(InputError, match=why):
            lm.classify(**wrong)
