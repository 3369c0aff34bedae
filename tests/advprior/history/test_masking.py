"""Names taken out of texts: none is left, other words stay, and everyone gets the same words in their place."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from advprior.history.catalog import Catalog
from advprior.history.masking import MASK, mask_names

WORDS = st.sampled_from(
    ["Margaux", "Rye", "Château", "Tea", "Leaf", "Côte", "O'Hara", "Ñuñoa", "A.B.", "(Co)", "雪肌精"]
)
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5)


@given(names=NAMES, data=st.data())
def test_no_name_is_left_and_no_other_word_is_lost(names: list[str], data: st.DataObject) -> None:
    around = data.draw(st.lists(st.sampled_from(["red wine", "of", "soap,"]), min_size=len(names), max_size=len(names)))
    texts = [f"{name.upper()}: {word} by {name}. {word}" for name, word in zip(names, around, strict=True)]
    masked = mask_names(texts, names)
    for text, name, word in zip(masked, names, around, strict=True):
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
        assert text.startswith(MASK)
        assert text.count(word) >= 2
    assert mask_names(masked, names) == masked
    # who has another name but the same words around it has the same text
    same = mask_names([f"{name}: soap" for name in names], names)
    assert set(same) == {f"{MASK}: soap"}


def test_a_script_without_spaces() -> None:
    assert mask_names(["雪肌精は化粧水です", "10 ml of 1"], ["雪肌精", "1"]) == (
        f"{MASK}は化粧水です",
        f"10 ml of {MASK}",
    )


def test_a_word_that_many_have_says_what_is_sold() -> None:
    texts = ["Tea Leaf: green tea of Leaf", *[f"tea {i}" for i in range(5)]]
    masked = mask_names(texts, ["Tea Leaf", *["Nobody"] * 5])
    assert masked[0] == f"{MASK}: green tea of {MASK}"
    assert masked[1:] == tuple(texts[1:])
    # with fewer who have it, it may well be the name
    assert mask_names(texts[:3], ["Tea Leaf", "Nobody", "Nobody"])[0] == f"{MASK}: green {MASK} of {MASK}"


@given(st.text(), st.text())
def test_any_text_is_taken(text: str, name: str) -> None:
    assume(MASK not in text)
    (masked,) = mask_names([text], [name])
    if not name.strip():
        assert masked == text


def test_a_masked_catalog_has_the_same_advertisers_and_no_names(tmp_path) -> None:
    catalog = Catalog(("a", "b"), ("Tea Leaf", "Rye"), ("cups by Tea Leaf", ""), ("Food", ""))
    masked = catalog.masked()
    assert masked.ids == catalog.ids
    assert masked.departments == catalog.departments
    assert masked.descriptions() == (f"{MASK}: cups by {MASK}", MASK)
    catalog.save(tmp_path / "catalog.json")
    assert Catalog.load(tmp_path / "catalog.json") == catalog
