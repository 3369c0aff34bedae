"""Names taken out of texts: the control that tells what a model remembers of a brand from what a text says of it.

A language model has read of "Château Margaux" before it reads a catalog. Where an arm with the names gains and the same
arm without them does not, memory is what pays, and it will not for advertisers that the model never heard of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

#: What stands in the place of a name: the same words for everyone, so that they tell nobody from another.
MASK = "this advertiser"
#: A word of a name that so many other advertisers' texts have too, at most, is taken for the name; one that more have
#: says what is sold ("tea" of a tea house among tea houses), and stays.
OTHERS, SHARE = 2, 0.02
_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def mask_names(texts: Sequence[str], names: Sequence[str], mask: str = MASK) -> tuple[str, ...]:
    """Each text without its advertiser's name: not the name as a whole, nor a word of it that is hardly anybody else's.

    Words are compared without regard to case, and as whole words only. One or two letters of a longer name
    are none.

    Parameters
    ----------
    texts : sequence of str [N]
        A text may be empty, or begin with the name, as `Catalog.descriptions` writes it.
    names : sequence of str [N]
    mask : str

    Returns
    -------
    tuple of str [N]

    Examples
    --------
    >>> mask_names(["Margaux Estate: red wine of Margaux", "Rye & Co. Bakery: bread"], ["Margaux Estate", "Rye & Co."])
    ('this advertiser: red wine of this advertiser', 'this advertiser Bakery: bread')
    """
    words = [_words(text) for text in texts]
    owners = Counter(word for own in words for word in own)
    most = max(OTHERS, int(SHARE * len(texts)))
    masked = []
    for text, own, name in zip(texts, words, names, strict=True):
        rare = {word for word in _words(name) if len(word) > 2 and owners[word] - (word in own) <= most}
        masked.append(_masked(text, name.strip(), rare, mask))
    return tuple(masked)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _whole(part: str) -> str:
    """A pattern of the part as whole words; a script without spaces between words has no ends of words to look for."""
    before, after = ("" if end.isalpha() and end.lower() == end.upper() else r"\w" for end in (part[0], part[-1]))
    return f"{f'(?<!{before})' if before else ''}{re.escape(part)}{f'(?!{after})' if after else ''}"


def _masked(text: str, name: str, words: set[str], mask: str) -> str:
    """One text without the name and these words of it; what stands side by side is masked once."""
    parts = [_whole(part) for part in ([name] if name else []) + sorted(words, key=lambda word: (-len(word), word))]
    if not parts:
        return text
    one = f"(?:{'|'.join(parts)})"
    return re.sub(rf"{one}(?:[\s'’&.-]+{one})*", lambda _: mask, text, flags=re.IGNORECASE)
