"""The prompt has the same tokens in every row, and only the article is cut (D1)."""

from pathlib import Path
from typing import Any

import pytest

from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.encoding import Encoder
from llmft.data.fields import RowFaultError
from llmft.data.prompts import split_prompt
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer

FIELDS = FieldsConfig()
ARTICLES = ["bank rate crisis", " bank", "\n\nbank", "ing bank", ".", "é 😀", "rate " * 100]


@pytest.fixture(params=["tiny_bert", "tiny_qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A word tokenizer with [CLS] and [SEP], and a byte-level one without."""
    base: Path = request.getfixturevalue(request.param)
    return load_tokenizer(BaseConfig(model=str(base)))


def open_encoder(tokenizer: Any, prompt: str, *, max_length: int = 40) -> Encoder:
    return Encoder(
        tokenizer,
        prompt=split_prompt(prompt, fields=FIELDS),
        fields=FIELDS,
        tokens=TokensConfig(max_length=max_length),
    )


def encode(encoder: Encoder, *texts: str) -> list[list[int]]:
    return [e.input_ids for e in encoder.encode([{"text": text} for text in texts])]


def test_d1_every_row_has_the_whole_prompt_and_tail(tokenizer: Any) -> None:
    encoder = open_encoder(tokenizer, "task : rate {text} policy .")
    inputs = encode(encoder, *ARTICLES)
    num_before = len(encode(open_encoder(tokenizer, "task : rate {text}"), ".")[0]) - 2
    for ids in inputs:
        assert ids[: num_before - 1] == inputs[0][: num_before - 1]
        assert len(ids) <= 40
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.startswith("task : rate")
        assert text.endswith("policy .")
    assert len(inputs[-1]) == 40, "the long article fills what is left"


def test_d1_only_the_article_loses_tokens(tokenizer: Any) -> None:
    encoder = open_encoder(tokenizer, "task : {text} .")
    long, short = encoder.encode([{"text": "bank " * 100}, {"text": "bank bank"}])
    assert long.num_kept_tokens == encoder.room
    assert len(long.input_ids) == encoder.max_length == encoder.num_prompt_tokens + encoder.room
    assert long.num_article_tokens > encoder.room
    assert short.num_kept_tokens == short.num_article_tokens
    assert len(short.input_ids) == encoder.num_prompt_tokens + short.num_kept_tokens


def test_without_a_prompt_the_input_is_what_the_tokenizer_makes(tokenizer: Any) -> None:
    encoder = open_encoder(tokenizer, "{text}")
    assert encode(encoder, "bank rate crisis") == [tokenizer("bank rate crisis")["input_ids"]]
    assert encoder.num_prompt_tokens == encoder.num_special_tokens


def test_d1_special_tokens_spelled_in_an_article_are_plain_text(tokenizer: Any) -> None:
    encoder = open_encoder(tokenizer, "task : {text} .", max_length=100)
    spelled = " ".join(tokenizer.all_special_tokens)
    plain, hostile = encode(encoder, "bank", f"bank {spelled} rate")
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert sum(i in special for i in hostile) == sum(i in special for i in plain)
    assert len(hostile) > len(plain)


def test_special_tokens_spelled_in_a_prompt_are_plain_text(tokenizer: Any) -> None:
    spelled = " ".join(tokenizer.all_special_tokens)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    plain, hostile = (
        encode(open_encoder(tokenizer, prompt, max_length=100), "bank")[0]
        for prompt in ("task {text}", f"task {spelled} {{text}}")
    )
    assert sum(i in special for i in hostile) == sum(i in special for i in plain)


def test_bytes_come_back_as_they_were(tiny_qwen: Path) -> None:
    tokenizer = load_tokenizer(BaseConfig(model=str(tiny_qwen)))
    article = "é 😀 <|endoftext|> \t{text}"
    (ids,) = encode(open_encoder(tokenizer, "Rate:\n{text}\nEnd", max_length=200), article)
    assert tokenizer.decode(ids) == f"Rate:\n{article}\nEnd"


def test_d1_a_prompt_without_room_for_an_article_is_refused(tokenizer: Any) -> None:
    encoder = open_encoder(tokenizer, "bank " * 50 + "{text}", max_length=8)
    assert encoder.room < 1
    with pytest.raises(UserError, match=r"tokens\.max_length: 8 leaves no tokens for the article"):
        encode(encoder, "bank")


def test_a_row_without_text_is_a_fault(tokenizer: Any) -> None:
    with pytest.raises(RowFaultError, match="empty text"):
        encode(open_encoder(tokenizer, "{text}"), " ")


def test_no_rows_give_no_inputs(tokenizer: Any) -> None:
    assert open_encoder(tokenizer, "{text}").encode([]) == []
