"""How prompts were written when a run was fitted, kept beside its weights: style, tokenizer, size of the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.tokens import Encode, plain_encoder
from advprior.store.errors import AdvpriorError

PROMPT_FILE, TOKENIZER_FILE = "prompt.json", "tokenizer.json"
NO_HISTORY, NETWORK, OFFSET_ALONE = "no_history", "network", "offset_alone"


def load_style(run: Path) -> PromptStyle:
    """The style alone."""
    return PromptStyle(**json.loads((run / PROMPT_FILE).read_text())["style"])


def profile_answers(run: Path) -> bool:
    """Whether users without a history are given what the network says of their profile.

    Not by a run that was fitted before it was trained on such points.
    """
    return bool(json.loads((run / PROMPT_FILE).read_text()).get(NO_HISTORY, OFFSET_ALONE) == NETWORK)


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
    return PromptEncoder(style, saved_encoder(run), int(saved["text_vocab_size"]), names)


def saved_encoder(run: Path) -> Encode:
    """Text to token ids by a run's own tokenizer, without torch or transformers."""
    from tokenizers import Tokenizer

    return plain_encoder(Tokenizer.from_file(str(run / TOKENIZER_FILE)))
