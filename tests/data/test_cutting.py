"""What is kept of an article that is too long, and of a second segment behind it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.batches import pad_inputs
from llmft.data.encoding import EncodedRow, Encoder
from llmft.data.fields import RowFaultError
from llmft.data.prompts import NO_PROMPT, split_prompt
from llmft.models.bases import load_tokenizer
from tests.conftest import WORDS

PAIR = FieldsConfig(text_pair="motive")


@pytest.fixture(scope="module")
def words(tiny_bert: Path) -> Any:
    """A tokenizer with one token a word."""
    return load_tokenizer(BaseConfig(model=str(tiny_bert)))


def encode(tokenizer: Any, row: dict[str, str], *, fields: FieldsConfig = PAIR, **tokens: Any):
    encoder = Encoder(
        tokenizer, prompt=NO_PROMPT, fields=fields, tokens=TokensConfig(**tokens), has_segments=True
    )
    return encoder.encode([row])[0]


def decode(tokenizer: Any, row: EncodedRow) -> str:
    return str(tokenizer.decode(row.input_ids))


def test_d4_head_and_tail_keep_seven_tenths_and_the_end(words: Any) -> None:
    text = " ".join(WORDS[:40])
    row = encode(words, {"text": text}, fields=FieldsConfig(), max_length=22, article="head_tail")
    kept = [*WORDS[:14], *WORDS[34:40]]  # 20 beside [CLS] and [SEP]
    assert decode(words, row) == f"[CLS] {' '.join(kept)} [SEP]"
    assert (row.num_article_tokens, row.num_kept_tokens) == (40, 20)


def test_an_article_that_fits_is_whole_in_either_way(words: Any) -> None:
    for article in ("head", "head_tail"):
        row = encode(
            words, {"text": "bank rate"}, fields=FieldsConfig(), max_length=8, article=article
        )
        assert decode(words, row) == "[CLS] bank rate [SEP]"


def test_a_pair_is_the_second_segment(words: Any) -> None:
    row = encode(words, {"text": "bank rate", "motive": "crisis"}, max_length=16)
    assert decode(words, row) == "[CLS] bank rate [SEP] crisis [SEP]"
    assert row.pair_start == 4
    other = encode(words, {"text": "oil", "motive": "gas strike"}, max_length=16)
    batch = pad_inputs([row, other], pad_token_id=0)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 6]


def test_the_tokenizer_itself_joins_a_pair_in_the_same_way(words: Any) -> None:
    row = encode(words, {"text": "bank rate", "motive": "crisis calm"}, max_length=16)
    expected = words("bank rate", "crisis calm", return_token_type_ids=True)
    assert row.input_ids == expected["input_ids"]
    batch = pad_inputs([row], pad_token_id=0)
    assert batch["token_type_ids"][0].tolist() == expected["token_type_ids"]


def test_a_base_without_special_tokens_gets_a_blank_line_and_no_segments(tiny_qwen: Path) -> None:
    tokenizer = load_tokenizer(BaseConfig(model=str(tiny_qwen)))
    encoder = Encoder(tokenizer, prompt=NO_PROMPT, fields=PAIR, tokens=TokensConfig(max_length=32))
    (row,) = encoder.encode([{"text": "bank rate", "motive": "crisis"}])
    assert decode(tokenizer, row) == "bank rate\n\ncrisis"
    assert row.pair_start is None
    assert "token_type_ids" not in pad_inputs([row], pad_token_id=0)


@given(num_article=st.integers(1, 60), num_pair=st.integers(1, 60), max_length=st.integers(8, 64))
def test_a_pair_is_cut_only_beyond_half_of_the_room(
    words: Any, num_article: int, num_pair: int, max_length: int
) -> None:
    row = encode(
        words, {"text": "bank " * num_article, "motive": "oil " * num_pair}, max_length=max_length
    )
    room = max_length - 3
    text = decode(words, row)
    kept_article, kept_pair = text.count("bank"), text.count("oil")
    assert kept_pair == min(num_pair, max(room // 2, room - num_article))
    assert kept_article == min(num_article, room - kept_pair)
    assert row.num_kept_tokens == kept_article + kept_pair
    assert row.num_article_tokens == num_article + num_pair
    assert len(row.input_ids) == 3 + row.num_kept_tokens


@pytest.mark.parametrize("motive", [{}, {"motive": " "}])
def test_a_row_without_its_pair_is_a_fault(words: Any, motive: dict[str, str]) -> None:
    with pytest.raises(RowFaultError, match="nothing in motive"):
        encode(words, {"text": "bank", **motive}, max_length=16)


def test_the_pieces_say_what_is_cut(words: Any) -> None:
    fields = FieldsConfig()
    encoder = Encoder(
        words,
        prompt=split_prompt("task : {text} .", fields=fields),
        fields=fields,
        tokens=TokensConfig(max_length=9, article="head_tail"),
    )
    row = {"text": "bank market rate crisis calm growth"}
    (pieces,), (encoded,) = encoder.dissect([row]), encoder.encode([row])
    shown = [(p.kind, words.decode(p.ids)) for p in pieces if p.ids]
    assert shown == [
        ("special", "[CLS]"),
        ("prompt", "task :"),
        ("article", "bank market rate"),
        ("cut", "crisis calm"),
        ("article", "growth"),
        ("tail", "."),
        ("special", "[SEP]"),
    ]
    assert encoded.input_ids == [i for p in pieces if p.kind != "cut" for i in p.ids]


def test_a_text_that_the_tokenizer_drops_still_gives_an_input(tiny_qwen: Path) -> None:
    tokenizer = load_tokenizer(BaseConfig(model=str(tiny_qwen)))
    encoder = Encoder(
        tokenizer, prompt=NO_PROMPT, fields=FieldsConfig(), tokens=TokensConfig(max_length=32)
    )
    assert encoder._join([]).input_ids == [tokenizer.pad_token_id]
