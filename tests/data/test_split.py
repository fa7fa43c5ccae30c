import pytest

from llm_jax.core.tables import InputError
from llm_jax.data.documents import Example, Text
from llm_jax.data.split import SPLITS, ByHash, Few, LastDocuments, WithinText

TEXTS = [Text(f"document {i:020d} of some length") for i in range(2000)]


def splitting(name, share):
    return Few(len(TEXTS), ByHash(share)) if name == "Few" else SPLITS[name](share)


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_keeps_everything_exactly_once(name):
    for share in (0.0, 0.1, 0.5):
        train, validation = splitting(name, share)(TEXTS)
        whole = "".join(sorted(d.text() for d in TEXTS))
        assert len("".join(d.text() for d in train + validation)) == len(whole)
        kept = len("".join(d.text() for d in validation)) / len(whole)
        assert abs(kept - share) < 0.06 and (share > 0) == bool(validation)
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"\.validation is a fraction"):
            splitting(name, share)


def test_by_hash_is_stable_under_adding_and_reordering():
    before = set(ByHash(0.1)(TEXTS[:1000])[1])
    after = set(ByHash(0.1)(TEXTS[::-1])[1])
    assert before == after & set(TEXTS[:1000])


def test_last_documents_are_the_last():
    assert LastDocuments(0.1)(TEXTS) == (TEXTS[:1800], TEXTS[1800:])


def test_within_text_holds_out_the_last_tenth_as_nano_gpt_does():
    train, validation = WithinText(0.1)([Text("x" * 1_115_394)])
    assert [len(d.text()) for d in train + validation] == [1_003_854, 111_540]
    with pytest.raises(InputError, match="WithinText cannot cut a Example"):
        WithinText()([Example("a", "b")])


def test_few_documents_are_the_first_and_hold_out_the_same():
    train, held_out = ByHash(0.1)(TEXTS)
    assert Few(7, ByHash(0.1))(TEXTS) == (train[:7], held_out)
