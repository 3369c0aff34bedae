"""Readable text for complete_journey: the register's abbreviations spelt out, and a name for each manufacturer.

The source has numbers for manufacturers and a register's short forms for goods; a language model and a person need
words. Names use purchases before the first split only, so that no name depends on what is to be predicted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    import pandas as pd

#: The register's abbreviations, spelt out for a reader that knows words.
_WORDS = {
    "AND": "and",
    "BKD": "Baked",
    "BN": "Bean",
    "BRKFST": "Breakfast",
    "BTR": "Butter",
    "CKYS": "Cookies",
    "CLEANG": "Cleaning",
    "CNDY": "Candy",
    "CNTRL": "Central",
    "COCO": "Cocoa",
    "CONC": "Concentrate",
    "CONT": "Contributions",
    "CRKR": "Crackers",
    "CRYSTL": "Crystal",
    "DISPOSIBLE": "Disposable",
    "DNR": "Dinner",
    "DRNK": "Drink",
    "DRNKS": "Drinks",
    "DRSNG": "Dressing",
    "DSH": "Dishes",
    "ELECT": "Electrical",
    "FD": "Food",
    "FLVRD": "Flavored",
    "FRZN": "Frozen",
    "GM": "& General Merchandise",
    "HBC": "Health & Beauty Care",
    "JCE": "Juice",
    "MEMORABLILIA": "Memorabilia",
    "MFG": "Manufacturer",
    "MISC": "Miscellaneous",
    "MW": "Microwave",
    "MX": "Mix",
    "MXS": "Mixes",
    "NDAIRY": "Non-Dairy",
    "PCKGD": "Packaged",
    "PK": "Pack",
    "PKD": "Packed",
    "PKG": "Packaged",
    "PKGD": "Packaged",
    "PKLD": "Pickled",
    "PNT": "Peanut",
    "PROD": "Produce",
    "PWDR": "Powder",
    "REFRGRATD": "Refrigerated",
    "RW": "Random-Weight",
    "SALD": "Salad",
    "SHERBTS": "Sherbets",
    "SNDWCH": "Sandwich",
    "SNKS": "Snacks",
    "SOD": "Soda",
    "SPLY": "Supplies",
    "SPRD": "Spread",
    "SUPPPLIES": "Supplies",
    "SWEETNERS": "Sweeteners",
    "SYRUP": "Syrup",
    "TISS": "Tissue",
    "TRSH": "Trash",
    "VEG": "Vegetable",
    "WHLSM": "Wholesome",
    "WHS": "Warehouse",
    "WTR": "Water",
}

#: Those of product types beside them.
_TYPE_WORDS = {
    **_WORDS,
    "ALC": "Alcohol",
    "BEERALEMALT": "Beer, Ale & Malt",
    "BTL": "Bottle",
    "CAR": "Carbonated",
    "CARB": "Carbonated",
    "CIGS": "Cigarettes",
    "CRBNTD": "Carbonated",
    "DNRS": "Dinners",
    "DOGFD": "Dog Food",
    "DRNKING": "Drinking",
    "EXCH": "Exchange",
    "FEM": "Feminine",
    "HYGN": "Hygiene",
    "IWS": "Individually Wrapped",
    "JUIC": "Juice",
    "MLT": "Multi",
    "MNERAL": "Mineral",
    "PPK": "Prepacked",
    "PRESLC": "Presliced",
    "PRESLCD": "Presliced",
    "RTS": "Ready-to-Serve",
    "SFT": "Soft",
    "SGL": "Single",
    "SNGL": "Single",
    "SRV": "Serve",
    "SS": "Single-Serve",
    "SV": "Serve",
    "SW": "Sweet",
    "SWEE": "Sweetener",
    "VEND": "Vending",
    "WATE": "Water",
    "WHT": "White",
}


def readable(text: str) -> str:
    """A category or department of the source as text for people and language models.

    >>> readable("FRZN JCE CONC/DRNKS"), readable("CANDY - PACKAGED"), readable("FITNESS&DIET")
    ('Frozen Juice Concentrate/Drinks', 'Candy, Packaged', 'Fitness & Diet')
    """
    return _spelt_out(text, _WORDS)


def readable_type(text: str) -> str:
    """A product type of the source likewise; what its 30 characters cut off within brackets is left out.

    >>> readable_type("SFT DRNK MLT-PK BTL CARB (EXCP"), readable_type("EGGS - LARGE")
    ('Soft Drink Multi-Pack Bottle Carbonated', 'Eggs, Large')
    """
    return _spelt_out(re.sub(r"(?<=\S)\s*\([^)]*$", "", text), _TYPE_WORDS)


def _spelt_out(text: str, words: Mapping[str, str]) -> str:
    spaced = re.sub(r"\s*&\s*", " & ", text.replace(".", " ").replace("(", " ("))
    spaced = re.sub(r"\s+-\s+|-\s+", ", ", spaced).replace(":", ", ")
    spelt = re.sub(r"[A-Z']+", lambda m: words.get(m[0], m[0].capitalize()), spaced)
    return re.sub(r"\s+,", ",", re.sub(r"\s+", " ", spelt)).strip(" ,-/")


def advertiser_names(
    advertisers: Sequence[int], purchases: pd.DataFrame, products: pd.DataFrame, *, before_week: int
) -> dict[int, str]:
    """A readable, unique name for each manufacturer, from what was bought of it before a week.

    The name lists the three categories bought most, each at least a tenth of the purchases, and the department bought
    most. A manufacturer not bought by then is named after its products in the static product table. Equal names are
    told apart by a number; the most bought goes without.

    Parameters
    ----------
    advertisers : sequence of int
        Manufacturer ids to name.
    purchases : DataFrame
        ``week, manufacturer_id, department, product_category`` (readable text) and ``purchases``, the number of
        lines bought. Rows of ``before_week`` and later are ignored.
    products : DataFrame
        ``manufacturer_id, department, product_category, products``: the fall-back.
    before_week : int
        First retail week that the names must not use.

    Returns
    -------
    dict of int to str

    Raises
    ------
    AdvpriorError
        ``DAT043`` for a manufacturer without any category.
    """
    import pandas as pd

    early = purchases[purchases["week"] < before_week].rename(columns={"purchases": "n"})
    counted = early.groupby(["manufacturer_id", "department", "product_category"], as_index=False)["n"].sum()
    bought = counted.groupby("manufacturer_id")["n"].sum()
    static = products.rename(columns={"products": "n"})
    counts = pd.concat([counted, static[~static["manufacturer_id"].isin(bought.index)]])
    counts = counts[counts["manufacturer_id"].isin(list(advertisers)) & counts["product_category"].notna()]
    counts_by_advertiser = dict(list(counts.groupby("manufacturer_id")))
    names: dict[int, str] = {}
    for advertiser in advertisers:
        if advertiser not in counts_by_advertiser:
            raise AdvpriorError(
                "DAT043", "a manufacturer has no product category to name it after", where=f"manufacturer {advertiser}"
            )
        names[advertiser] = _name(counts_by_advertiser[advertiser])
    volume = bought.reindex(list(advertisers)).fillna(0)
    used: dict[str, int] = {}
    for advertiser in sorted(advertisers, key=lambda a: (-volume[a], a)):
        name = names[advertiser]
        used[name] = used.get(name, 0) + 1
        if used[name] > 1:
            names[advertiser] = f"{name} no. {used[name]}"
    return names


def _name(counts: pd.DataFrame) -> str:
    """Name of one manufacturer from its counts by department and category."""

    def ranked(column: str) -> list[tuple[str, int]]:
        # by count, then by text: no tie is left to chance; in plain Python: a groupby for each took 2 s in all
        total: Counter[str] = Counter()
        for text, n in zip(counts[column].tolist(), counts["n"].tolist(), strict=True):
            if isinstance(text, str):
                total[text] += n
        return sorted(total.items(), key=lambda each: (-each[1], each[0]))

    categories = ranked("product_category")
    least = 0.1 * sum(n for _, n in categories)
    top = [text for text, n in categories if n >= least][:3] or [categories[0][0]]
    listed = top[0] if len(top) == 1 else f"{', '.join(top[:-1])} & {top[-1]}"
    return f"{listed} ({ranked('department')[0][0]})"
