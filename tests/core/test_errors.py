"""Names that are nearly right."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import InputError, lookup, nearest


def test_nearest_names_one_or_all():
    assert nearest("repeat", ["width", "repeats"]) == "did you mean 'repeats'?"
    assert nearest("zzz", ["width", "repeats"]) == "choose from repeats, width"
    assert nearest("zzz", []) == "there are none"
    many = [f"{letter}{number}" for letter in "abcdefg" for number in range(9)]
    assert nearest("zzz", many).startswith("the nearest of 63 are ") and nearest("zzz", many).count(",") == 4


def test_lookup_says_what_it_looked_for():
    assert lookup({"a": 1}, "a", "thing") == 1
    with pytest.raises(InputError, match=r"no thing named 'alpa': did you mean 'alpha'\?"):
        lookup({"alpha": 1}, "alpa", "thing")
