"""Words of the click log: names in several languages, texts, profiles; each tells a taste, not always truly.

Apart from the simulation, because texts are what a predictor reads and counts are what a click depends on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: One word a taste and language; the language of an advertiser is drawn, so that a catalog mixes scripts.
LANGUAGES: dict[str, tuple[str, ...]] = {
    "en": ("Coffee", "Garden", "Outdoor", "Music", "Baby", "Pet", "Beauty", "Sports"),
    "de": ("Kaffee", "Garten", "Draußen", "Musik", "Säugling", "Haustier", "Schönheit", "Sport"),
    "es": ("Café", "Jardín", "Montaña", "Música", "Bebé", "Mascota", "Belleza", "Deporte"),
    "ja": ("コーヒー", "庭園", "アウトドア", "音楽", "赤ちゃん", "ペット", "美容", "スポーツ"),
    "ar": ("قهوة", "حديقة", "رحلات", "موسيقى", "أطفال", "حيوانات", "جمال", "رياضة"),
    "hi": ("कॉफ़ी", "बगीचा", "यात्रा", "संगीत", "शिशु", "पालतू", "सौंदर्य", "खेल"),
}
KINDS = ("Company", "House", "Works", "Store", "Brothers", "Market")
CATEGORIES = (
    "Drinks",
    "Plants",
    "Travel",
    "Audio",
    "Nursery",
    "Animals",
    "Care",
    "Fitness",
    "Books",
    "Home",
    "Toys",
    "Tools",
)
REGIONS = ("north", "south", "east", "west")

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


class AdvertiserTexts(NamedTuple):
    """What is written of advertisers.

    Attributes
    ----------
    ids, names, descriptions : object [A]
    categories : object [A, ads of an advertiser]
        The first follows the largest taste.
    """

    ids: npt.NDArray[np.object_]
    names: npt.NDArray[np.object_]
    descriptions: npt.NDArray[np.object_]
    categories: npt.NDArray[np.object_]


def advertiser_texts(taste: Float, ads_each: int, rng: np.random.Generator) -> AdvertiserTexts:
    """Names, descriptions and categories of advertisers, by their two largest tastes.

    Parameters
    ----------
    taste : float64 [A, K]
        K is at most the number of words of a language.
    ads_each : int
        Categories of an advertiser; all different.
    rng : numpy.random.Generator
    """
    count = len(taste)
    first, second = np.argsort(-taste, axis=1)[:, :2].T
    language = rng.choice(len(LANGUAGES), size=count, p=[0.5, *[0.5 / (len(LANGUAGES) - 1)] * (len(LANGUAGES) - 1)])
    words = [list(LANGUAGES.values())[k] for k in language]
    names = [f"{w[a]} {KINDS[i % len(KINDS)]} {i}" for i, (w, a) in enumerate(zip(words, first, strict=True))]
    descriptions = [f"{w[a]}, {w[b]}" for w, a, b in zip(words, first, second, strict=True)]
    shift = np.argsort(rng.random((count, len(CATEGORIES) - 1)), axis=1)[:, : ads_each - 1] + 1
    index = (first[:, None] + np.concatenate([np.zeros((count, 1), np.int64), shift], axis=1)) % len(CATEGORIES)
    width = len(str(count - 1))
    return AdvertiserTexts(
        np.asarray([f"a{i:0{width}d}" for i in range(count)], object),
        np.asarray(names, object),
        np.asarray(descriptions, object),
        np.asarray(CATEGORIES, object)[index],
    )


def profile_texts(
    taste: Float, without: float, truthful: float, rng: np.random.Generator
) -> dict[str, npt.NDArray[np.object_]]:
    """Profile columns; ``without`` of the users have none, ``truthful`` of the others state their largest taste."""
    count, tastes = taste.shape
    stated = np.where(rng.random(count) < truthful, taste.argmax(axis=1), rng.integers(tastes, size=count))
    interest = np.asarray([word.lower() for word in LANGUAGES["en"][:tastes]], object)[stated]
    region = np.asarray(REGIONS, object)[rng.integers(len(REGIONS), size=count)]
    bare = rng.random(count) < without
    interest[bare] = region[bare] = None
    return {"profile_interest": interest, "profile_region": region}


def visit_texts(taste: Float, rng: np.random.Generator) -> npt.NDArray[np.object_]:
    """What a visitor searched for: a word of a taste, drawn by how strong it is.

    Parameters
    ----------
    taste : float64 [E, K]
        Of the user of each event.
    """
    drawn = (1.5 * taste + rng.gumbel(size=taste.shape)).argmax(axis=1) if len(taste) else np.zeros(0, np.int64)
    words: npt.NDArray[np.object_] = np.asarray([word.lower() for word in LANGUAGES["en"][: taste.shape[1]]], object)
    texts: npt.NDArray[np.object_] = words[drawn]
    return texts
