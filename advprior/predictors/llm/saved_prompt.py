"""How prompts were written when a run was fitted, kept beside its weights: style, tokenizer, size of the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.store.errors import AdvpriorError

PROMPT_FILE, TOKENIZER_FILE = "prompt.json", "tokenizer.json"


def load_style(run: Path) -> PromptStyle:
    """The style alone."""
    return PromptStyle(**json.loads((run / PROMPT_FILE).read_text())["style"])


def load_encoder(run: Path, names: Sequence[str]) -> PromptEncoder:
    """The prompt encoder in the style that the run was fitted on, without torch or transformers.

    Parameters
    ----------
    run : Path
        Holds `PROMPT_FILE` and `TOKENIZER_FILE`.
    names : sequence of str
        Of the advertisers, in catalog order.

    Raises
    ------
    AdvpriorError
        ``PRI005`` when another version of the code wrote prompts in another style.
    """
    from tokenizers import Tokenizer

    saved = json.loads((run / PROMPT_FILE).read_text())
    style = PromptStyle(**saved["style"])
    if style.version != PromptStyle.version:
        raise AdvpriorError(
            "PRI005",
            "the prompt style is of another version",
            where=str(run / PROMPT_FILE),
            actual=str(style.version),
            expected=str(PromptStyle.version),
            fix="advprior finetune, again",
        )
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER_FILE))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return PromptEncoder(style, encode, int(saved["text_vocab_size"]), names)
