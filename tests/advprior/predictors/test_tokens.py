"""A user's text is text: no mark in it ends a chat, no name is a mean of nothing, whatever tokenizer a model brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from advprior.history.catalog import Catalog
from advprior.predictors.base import FitData
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.saved_prompt import load_encoder
from advprior.predictors.tokens import plain_encoder, readable
from advprior.predictors.tuning.decoder import load_tokenizer
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.tuning.cycles import NAMES, cycle_data, cycle_settings
from tests.tiny_llm import SPECIAL, tiny_tokenizer, write_tiny_llm, write_tokenizer

MARKS = (*SPECIAL, "<tool_call>", "[INST]")
TEXTS = st.lists(st.sampled_from([*MARKS, "a", " tea", ";", "é"]), min_size=1, max_size=6).map("".join)


def marked() -> Tokenizer:
    """With marks that the tokenizer itself does not call special, as some instruct models have them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS[len(SPECIAL) :]])
    return tokenizer


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, marked())
    tokenizer = load_tokenizer(folder).backend_tokenizer
    return plain_encoder(tokenizer)


@given(TEXTS)
def test_no_mark_in_a_text_is_one_token(encode, text: str) -> None:
    marks = {marked().token_to_id(mark) for mark in MARKS}
    assert encode("<|im_end|> Tea") != marked().encode("<|im_end|> Tea").ids  # the stock tokenizer would
    ids = encode(text)
    assert not marks & set(ids)
    assert marked().decode(ids, skip_special_tokens=False) == text


def test_marks_in_names_and_profiles_are_text_in_a_fit_and_in_its_scoring(tmp_path: Path) -> None:
    base = write_tiny_llm(tmp_path / "base", layers=2)
    data = cycle_data(users=6, weeks=12)
    catalog = Catalog(data.catalog.ids, ("<|im_end|>", *NAMES[1:]))
    histories = data.histories
    object.__setattr__(histories, "profiles", ("Interests: <|endoftext|>",) * len(histories))
    data = FitData(histories, catalog, data.start, data.cutoff, data.snapshot_every)
    (tmp_path / "run").mkdir()
    LLMPredictor.fit(data, cycle_settings(base, layers=2, tuned_layers=1, training={"epochs": 1}), tmp_path / "run")
    encoder = load_encoder(tmp_path / "run", catalog.names)
    head = encoder.prompt(histories, 0).head
    assert not {0, 1, 2} & set(head.tolist())
    assert Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json")).decode(head).startswith("Interests: <|endof")


def test_names_without_a_token_are_read_by_their_ids() -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text if letter.isascii()]

    assert readable(("Tea", "茶", ""), ("a1", "a2", "a3"), encode) == ["Tea", "a2", "a3"]
    with pytest.raises(AdvpriorError, match=r"PRI055(.|\n)*1 of 2, such as '茶行'"):
        readable(("Tea", "茶"), ("a1", "茶行"), encode)


def dropping() -> Tokenizer:
    """Knows a few letters and drops all others, ``;`` among them: no bytes to fall back on, no unknown token."""
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_tokenizer_without_the_separator_is_refused() -> None:
    assert dropping().encode(";").ids == []
    with pytest.raises(AdvpriorError, match=r"PRI055(.|\n)*;"):
        PromptEncoder(PromptStyle(), plain_encoder(dropping()), 36, ["tea"])


def test_no_bos_eos_or_pad_token_and_a_chat_template(tmp_path: Path) -> None:
    """A base model's tokenizer may lack all of them, or bring a template and marks around every text."""
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0]['content'] }}!"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token is None
    assert tokenizer.chat_template is None
    assert tokenizer("the tea")["input_ids"] == tiny_tokenizer().encode("the tea").ids


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "a</w>": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(AdvpriorError, match=r"PRI023(.|\n)*no fast version(.|\n)*CTRLTokenizer"):
        load_tokenizer(tmp_path)


def test_what_ends_an_occasion_stands_nowhere_else() -> None:
    from dataclasses import replace

    from advprior.history.histories import Histories

    one = Histories(("u",), ("",), np.array([0, 1]), np.array([5]), np.array([0]))
    sold = replace(one, category=np.array([0], np.int32), categories=("Tea; Coffee",))
    encoder = PromptEncoder(PromptStyle(detail="category"), lambda text: list(text.encode()), 300, ["Tea"])
    assert encoder.prompt(sold, 0).body.tolist().count(ord(";")) == 1
