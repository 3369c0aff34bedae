"""The one setting of how texts are encoded, in configuration files and on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from advprior.predictors.tuning.base import DEFAULT_BASE
from advprior.predictors.tuning.reading import Pooling, Reading
from advprior.store.contract import LEXICAL
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest

ENCODING_VERSION = 1  # of what is made of a text by the same settings and weights
_FORM = "NAME, or NAME@pooling, NAME@layers=8, NAME@skip_first,layers=8-12,tokens=160"
_Layer = Annotated[int, Field(ge=1)]


class Encoding(BaseModel):
    """Which network encodes texts, and how its states become one vector.

    ``base`` is a causal language model or a sentence encoder (a folder, a hub id, an installed package), or the run
    folder of an LLM that was fitted on histories. ``layers``: the first so many, whose last state is read, or [from,
    to], whose states are averaged; by default all of a sentence encoder and the first ten of a language model.
    ``pooling``: ``mean`` of all tokens, ``skip_first`` (a mark is put before and left out of the mean), ``echo`` (the
    text twice, the mean over its second copy); by default what a sentence encoder was trained with, and ``mean`` of a
    language model. ``twin`` takes the same network with random weights, pooled alike: the random-weight control.
    ``masked`` takes the advertisers' names out of what is read: the control that cannot remember a brand.
    ``base: lexical`` takes character n-grams of the whole text in the network's place, the lexical control: layers,
    pooling and tokens say nothing of it.
    """

    model_config = ConfigDict(extra="forbid")
    decoder_layers: ClassVar[int] = 10
    base: str = DEFAULT_BASE
    twin: bool = False
    layers: _Layer | tuple[_Layer, _Layer] | None = None
    pooling: Pooling | None = None
    tokens: int = Field(default=160, ge=1)
    masked: bool = False

    @model_validator(mode="after")
    def _layers_ascend(self) -> Encoding:
        if isinstance(self.layers, tuple) and self.layers[0] > self.layers[1]:
            raise ValueError("layers: [from, to], the smaller number first")
        return self

    @model_validator(mode="after")
    def _no_network(self) -> Encoding:
        if self.base == LEXICAL and self.twin:
            raise ValueError("base: lexical has no network whose weights could be random")
        return self

    @property
    def pretrained(self) -> bool:
        """Whether pre-trained weights are behind it: not so for the lexical and the random-weight control."""
        return not self.twin and self.base != LEXICAL

    def origin_facts(self, origin: dict[str, Any]) -> dict[str, Any]:
        """What made the encodings, as a fact of a run: a ``base`` is a network."""
        return {"words" if self.base == LEXICAL else "base": origin}

    def reading(self) -> Reading:
        """The same for the rooms that load networks."""
        return Reading(self.layers, self.pooling, self.tokens, type(self).decoder_layers)

    def key(self) -> str:
        """Digest of everything here that an encoding depends on, but for the weights."""
        about = {name: getattr(self, name) for name in ("twin", "layers", "pooling", "tokens")}
        return digest([about, type(self).decoder_layers, ENCODING_VERSION])


def parse_encoding(text: str) -> Encoding:
    """An encoder as the command line names it.

    Raises
    ------
    AdvpriorError
        ``CFG002`` when what follows the last ``@`` is no setting.

    Examples
    --------
    >>> parse_encoding("HuggingFaceTB/SmolLM2-135M-Instruct@skip_first,layers=8-12").layers
    (8, 12)
    >>> parse_encoding("models/mine").pooling
    """
    base, at, rest = text.rpartition("@")
    if not at or Path(text).expanduser().exists():
        return Encoding(base=text)
    values: dict[str, object] = {"base": base}
    for part in rest.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            name, value = "pooling", name
        numbers = re.fullmatch(r"([0-9]+)-([0-9]+)", value) if name == "layers" else None
        values[name] = tuple(map(int, numbers.groups())) if numbers else value
    try:
        return Encoding.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise AdvpriorError(
            "CFG002",
            "an encoder has settings that do not fit",
            where=text,
            actual=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            expected=_FORM,
            fix="pooling is mean, skip_first or echo",
        ) from error


def label(encoding: Encoding) -> str:
    """What an encoder is called in tables: the last part of its name, and the settings that are not the default.

    >>> label(parse_encoding("HuggingFaceTB/SmolLM2-135M-Instruct@skip_first,layers=8"))
    'SmolLM2-135M-Instruct@skip_first,layers=8'
    """
    parts: list[str] = [encoding.pooling] if encoding.pooling else []
    if encoding.layers is not None:
        numbers = encoding.layers if isinstance(encoding.layers, tuple) else (encoding.layers,)
        parts.append("layers=" + "-".join(map(str, numbers)))
    if encoding.tokens != Encoding().tokens:
        parts.append(f"tokens={encoding.tokens}")
    if encoding.masked:
        parts.append("masked=true")
    return Path(encoding.base).name + ("@" + ",".join(parts) if parts else "")
