"""Names of manufacturers: from what was bought most before the first split, and from nothing later."""

from __future__ import annotations

import pandas as pd
import pytest

from advprior.data.grocery_text import advertiser_names
from advprior.store.errors import AdvpriorError


def purchases(rows: list[tuple[int, int, str, str, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["week", "manufacturer_id", "department", "product_category", "purchases"])


PRODUCTS = pd.DataFrame(
    [
        (1, "Grocery", "Tea", 9),
        (2, "Grocery", "Soup", 3),
        (3, "Meat", "Beef", 1),
        (3, "Meat", "Pork", 2),
        (4, "Meat", "Beef", 5),
    ],
    columns=["manufacturer_id", "department", "product_category", "products"],
)
EARLY = [
    (1, 1, "Grocery", "Soft Drinks", 50), (5, 1, "Grocery", "Water", 20), (9, 1, "Grocery", "Bag Snacks", 30),
    (9, 1, "Deli", "Cheeses", 5), (2, 2, "Grocery", "Soup", 8), (3, 4, "Meat", "Beef", 2),
]  # fmt: skip


def test_names_come_from_what_was_bought_most_and_else_from_the_products():
    names = advertiser_names([1, 2, 3, 4], purchases(EARLY), PRODUCTS, before_week=20)
    assert names == {
        1: "Soft Drinks, Bag Snacks & Water (Grocery)",
        2: "Soup (Grocery)",
        3: "Pork & Beef (Meat)",  # never bought: its products, by their number
        4: "Beef (Meat)",
    }


def test_later_purchases_never_change_a_name():
    before = advertiser_names([1, 2, 3, 4], purchases(EARLY), PRODUCTS, before_week=20)
    later = [(20, 1, "Meat", "Beef", 999), (33, 2, "Grocery", "Tea", 999), (53, 3, "Drug", "Soap", 999)]
    assert advertiser_names([1, 2, 3, 4], purchases(EARLY + later), PRODUCTS, before_week=20) == before
    # the same purchases a week earlier do: the test above can fail
    assert advertiser_names([1, 2, 3, 4], purchases([*EARLY, (19, *later[0][1:])]), PRODUCTS, before_week=20) != before


def test_equal_names_are_numbered_by_early_purchases():
    rows = [(1, m, "Meat", "Beef", count) for m, count in ((7, 1), (8, 10), (9, 5))]
    later = [(40, 7, "Meat", "Beef", 1000)]
    names = advertiser_names([7, 8, 9], purchases(rows + later), PRODUCTS.iloc[:0], before_week=20)
    assert names == {8: "Beef (Meat)", 9: "Beef (Meat) no. 2", 7: "Beef (Meat) no. 3"}


def test_a_manufacturer_without_any_category_is_an_error():
    with pytest.raises(AdvpriorError, match="DAT043"):
        advertiser_names([99], purchases(EARLY), PRODUCTS, before_week=20)
