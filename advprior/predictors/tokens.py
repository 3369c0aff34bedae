"""Users' text as token ids: text and nothing else, whatever marks stand in it, and no name without a token.

A profile, a search or an advertiser's name may hold ``<|im_end|>`` or ``</s>``. A tokenizer takes such marks out of a
text by default and gives the one token that ends a chat; here they are letters like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from advprior.store.errors import AdvpriorError

Encode = Callable[[str], list[int]]

_BYTE_LEVEL = "set `base` to a model with a byte-level tokenizer"


def plain_encoder(tokenizer: Any) -> Encode:
    """Text to token ids, special tokens within a text read as text.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Told so for good: the setting is not part of its file.
    """
    tokenizer.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode


def end_mark(encode: Encode, text: str) -> int:
    """The token that writes a separator: its last one, where a tokenizer writes a space before.

    Raises
    ------
    AdvpriorError
        ``PRI055`` when the tokenizer has none: nothing would end an occasion.
    """
    tokens = encode(text)
    if not tokens:
        raise AdvpriorError(
            "PRI055",
            "the base model's tokenizer cannot write the separator of a prompt",
            where="tokenizer",
            actual=f"no token for {text!r}",
            expected="a token at least",
            fix=_BYTE_LEVEL,
        )
    return tokens[-1]


def readable(names: Sequence[str], ids: Sequence[str], encode: Encode) -> list[str]:
    """The names, and in place of one that gives no token (all of it dropped by the tokenizer) its id.

    Raises
    ------
    AdvpriorError
        ``PRI055`` when the id gives none either: its vector would be a mean of nothing.

    Examples
    --------
    >>> letters = lambda text: [ord(letter) for letter in text if letter.isascii()]
    >>> readable(["Tea", "茶"], ["a1", "a2"], letters)
    ['Tea', 'a2']
    """
    texts = [name if encode(name) else id_ for name, id_ in zip(names, ids, strict=True)]
    unread = [id_ for text, id_ in zip(texts, ids, strict=True) if not encode(text)]
    if unread:
        raise AdvpriorError(
            "PRI055",
            "the base model's tokenizer reads nothing in a name, nor in its id",
            where="advertisers or categories",
            actual=f"{len(unread)} of {len(names)}, such as {unread[0]!r}",
            expected="a token at least",
            fix=f"{_BYTE_LEVEL}, or write these names in another script",
        )
    return texts
