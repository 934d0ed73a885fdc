"""Tokens beside the data: found again by the next run, never trusted, never in the way."""

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmft.cli import main
from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data import encoding
from llmft.data import token_cache as tokenised
from llmft.data.encoding import EncodedRow, Encoder, measure_budget
from llmft.data.fields import RowFaultError
from llmft.data.prompts import split_prompt
from llmft.data.token_cache import TokenisedRows, Tokens, open_tokens, remove_tokens
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer

WORDS = "bank market rate crisis calm growth loan debt bond stock".split()
FIELDS = FieldsConfig()


def make_rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": " ".join(WORDS[: 1 + i % 10]) + " oil" * (i // 10)}
            for i in range(num_rows)]  # fmt: skip


ROWS = {"train": make_rows(30), "val": make_rows(3)}


@pytest.fixture
def open_encoder(tiny_bert: Path) -> Callable[..., Encoder]:
    def open_one(prompt: str = "task : {text} .", **changes: Any) -> Encoder:
        made: dict[str, Any] = {
            "prompt": split_prompt(prompt, fields=FIELDS),
            "fields": FIELDS,
            "tokens": TokensConfig(max_length=12),
        }
        tokenizer = load_tokenizer(BaseConfig(model=str(tiny_bert)))
        return Encoder(tokenizer, **{**made, **changes})

    return open_one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "tokens" / "0123"


@pytest.fixture
def reopen(
    open_encoder: Callable[..., Encoder], folder: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., Tokens]:
    """Open tokens, and keep what was said of it."""
    caplog.set_level(logging.INFO, logger="llmft")

    def run(*, keep: bool = True, prompt: str = "task : {text} .") -> Tokens:
        caplog.clear()
        return open_tokens(ROWS, encoder=open_encoder(prompt), folder=folder, keep=keep)

    return run


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of rows of each call that encodes."""
    counts: list[int] = []
    encode = Encoder.encode

    def count(self: Encoder, rows: Any) -> list[EncodedRow]:
        counts.append(len(rows))
        return encode(self, rows)

    monkeypatch.setattr(Encoder, "encode", count)
    return counts


@pytest.mark.parametrize("pair", [False, True])
def test_rows_come_back_as_they_were_encoded(
    open_encoder: Callable[..., Encoder], folder: Path, pair: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("llmft.data.token_cache._ROWS_PER_CHUNK", 7)
    rows = [{**row, "title": "film music"} for row in ROWS["train"]]
    encoder = open_encoder()
    if pair:
        fields = FieldsConfig(text_pair="title")
        encoder = open_encoder("{text}", fields=fields, has_segments=True)
    expected = encoder.encode(rows)
    assert (expected[0].pair_start is not None) == pair
    for keep in (False, True):
        found = open_tokens({"train": rows}, encoder=encoder, folder=folder, keep=keep)
        encoded = found.encoded["train"]
        assert list(encoded) == expected
        assert encoded[-1] == expected[-1]
        assert encoded[5:9] == expected[5:9]
        assert encoded.lengths.tolist() == [e.num_tokens for e in expected]
        assert found.budgets["train"] == measure_budget(rows, expected, encoder=encoder)
        with pytest.raises(IndexError):
            encoded[30]


def test_ids_stay_in_the_file(reopen: Callable[..., Tokens]) -> None:
    reopen()
    before = pa.total_allocated_bytes()
    tokens = reopen()
    assert len(tokens.encoded["train"]) == 30
    assert pa.total_allocated_bytes() == before


def test_the_next_run_tokenises_no_more_than_a_few_rows(
    reopen: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first = reopen()
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokens.json", "train.arrow", "val.arrow",
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["0123"], "nothing half-written"
    counts = count_encoded(monkeypatch)
    again = reopen()
    assert sum(counts) <= 16
    assert again.budgets == first.budgets
    assert list(again.encoded["train"]) == list(first.encoded["train"])


def test_reading_alone_leaves_nothing(reopen: Callable[..., Tokens], folder: Path) -> None:
    assert len(reopen(keep=False).encoded["train"]) == 30
    assert not folder.parent.exists()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "half a file": lambda f: (f / "train.arrow").write_bytes((f / "train.arrow").read_bytes()[:99]),
    "an empty file": lambda f: (f / "val.arrow").write_bytes(b""),
    "no file": lambda f: (f / "val.arrow").unlink(),
    "a file of another split": lambda f: (f / "val.arrow").replace(f / "train.arrow"),
    "no manifest": lambda f: (f / "tokens.json").unlink(),
    "a foreign manifest": lambda f: (f / "tokens.json").write_text('{"format": 1, "files": []}'),
    "another format": lambda f: (f / "tokens.json").write_text('{"format": 0}'),
    "no JSON": lambda f: (f / "tokens.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tokens_that_cannot_be_used_are_made_again_with_one_line(
    reopen: Callable[..., Tokens], folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = list(reopen().encoded["train"])
    DAMAGES[damage](folder)
    assert list(reopen().encoded["train"]) == expected
    (message,) = caplog.messages
    assert "cannot be used" in message
    assert "tokenising again" in message
    reopen()
    assert not caplog.messages, "mended"


def test_d1_tokens_of_another_encoder_are_not_taken(
    reopen: Callable[..., Tokens], caplog: pytest.LogCaptureFixture
) -> None:
    reopen()
    tokens = reopen(prompt="task task : {text} .")  # as if a fingerprint had missed it
    assert "was tokenised differently" in caplog.text
    assert (
        tokens.encoded["train"][0].input_ids[1:3] == [tokens.encoded["train"][0].input_ids[1]] * 2
    )


def test_a_folder_that_cannot_be_written_is_no_error(
    reopen: Callable[..., Tokens], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.parent.mkdir()
    folder.parent.write_text("a file in its place")
    assert len(reopen().encoded["train"]) == 30
    (message,) = caplog.messages
    assert "tokens stay in memory" in message


@pytest.mark.parametrize("moment", ["_encode_chunks", "_map_files", "_measure_budgets"])
def test_a_folder_that_is_removed_while_it_is_written_is_no_error(
    reopen: Callable[..., Tokens], folder: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, moment: str,
) -> None:  # fmt: skip
    interrupted = getattr(tokenised, moment)

    def remove_first(*inputs: Any) -> Any:
        remove_tokens(folder.parent)  # as `llmft prepare` does
        return interrupted(*inputs)

    monkeypatch.setattr(tokenised, moment, remove_first)
    assert len(reopen().encoded["train"]) == 30
    (message,) = caplog.messages
    assert "No such file or directory" in message
    assert "tokens stay in memory" in message


@pytest.mark.parametrize("was_broken", [False, True])
def test_of_two_runs_the_slower_uses_what_the_faster_has_written(
    reopen: Callable[..., Tokens], open_encoder: Callable[..., Encoder], folder: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, was_broken: bool,
) -> None:  # fmt: skip
    if was_broken:
        reopen()
        (folder / "tokens.json").unlink()
    encode = Encoder.encode
    inodes = []

    def let_another_run_finish(*inputs: Any) -> Any:
        monkeypatch.setattr(Encoder, "encode", encode)
        open_tokens(ROWS, encoder=open_encoder(), folder=folder, keep=True)
        inodes.append((folder / "train.arrow").stat().st_ino)
        return encode(*inputs)

    monkeypatch.setattr(Encoder, "encode", let_another_run_finish)
    assert len(reopen().encoded["train"]) == 30
    assert [(folder / "train.arrow").stat().st_ino] == inodes
    assert len(caplog.messages) == was_broken
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_cannot_be_used_is_left_to_runs_that_write(
    reopen: Callable[..., Tokens], folder: Path
) -> None:
    reopen()
    (folder / "tokens.json").unlink()
    assert len(reopen(keep=False).encoded["train"]) == 30
    assert (folder / "train.arrow").exists()


def test_rows_and_prompts_that_cannot_be_encoded_are_errors_and_leave_nothing(
    open_encoder: Callable[..., Encoder], folder: Path
) -> None:
    rows = {"train": [*ROWS["train"], {"id": "x", "text": " "}]}
    with pytest.raises(RowFaultError, match="empty text"):
        open_tokens(rows, encoder=open_encoder(), folder=folder, keep=True)
    with pytest.raises(UserError, match="no tokens for the article"):
        open_tokens(ROWS, encoder=open_encoder("bank " * 50), folder=folder, keep=True)
    assert list(folder.parent.iterdir()) == []


def test_a_fingerprint_tells_encoders_apart(
    open_encoder: Callable[..., Encoder], tiny_qwen: Path
) -> None:
    encoders = [
        open_encoder(),
        open_encoder("task : {text}"),
        open_encoder(tokens=TokensConfig(max_length=13)),
        open_encoder(tokens=TokensConfig(max_length=12, article="head_tail")),
        open_encoder(fields=FieldsConfig(text="content")),
        open_encoder(has_segments=True),
        Encoder(
            load_tokenizer(BaseConfig(model=str(tiny_qwen))),
            prompt=split_prompt("task : {text} .", fields=FIELDS),
            fields=FIELDS,
            tokens=TokensConfig(max_length=12),
        ),
    ]
    assert len({encoder.compute_fingerprint() for encoder in encoders}) == len(encoders)
    waived = TokensConfig(max_length=12, min_article=1, waive="a study")
    same = open_encoder(tokens=waived)
    same.encode(ROWS["train"])
    assert same.compute_fingerprint() == encoders[0].compute_fingerprint()


@pytest.mark.parametrize("package", ["llmft", "tokenizers", "transformers"])
def test_d1_a_fingerprint_tells_versions_apart(
    open_encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    encoder = open_encoder()
    before = encoder.compute_fingerprint()
    assert encoder.compute_fingerprint() == before
    if package == "llmft":
        monkeypatch.setattr(encoding, "__version__", "0.0.0")
    else:
        monkeypatch.setattr(
            encoding, "version", lambda name: "0.0.0" if name == package else version(name)
        )
    assert encoder.compute_fingerprint() != before


def test_rows_that_share_nothing_in_memory() -> None:
    rows = [EncodedRow([], [5, 6], 2, 2), EncodedRow([], [7], 9, 1, pair_start=0)]
    tokens = TokenisedRows.of(rows)
    assert list(tokens) == rows
    assert TokenisedRows.of(tokens) is tokens
    assert TokenisedRows.of([]).lengths.tolist() == []
    with pytest.raises(AssertionError):
        TokenisedRows.of([*rows, EncodedRow([1], [5], 1, 1)])


def test_train_leaves_tokens_that_check_reads_and_prepare_removes(
    write_scores_task, write_recipe, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_scores_task()
    assert main(["prepare", str(task)]) == 0
    recipe = write_recipe(tiny_bert)
    tokens = Path("prepared/tokens")
    assert main(["check", str(recipe)]) == 0
    assert not tokens.exists(), "check leaves nothing"
    assert main(["train", str(recipe), "--set", "train.steps=2"]) == 0
    assert len(list(tokens.iterdir())) == 1
    counts = count_encoded(monkeypatch)
    assert main(["check", str(recipe)]) == 0
    assert sum(counts) < 48, "check reads what train has left"
    limited = [str(recipe), "--set", "train.steps=2", "--set", "train.limit_rows=9"]
    assert main(["train", *limited, "--set", "output_dir=runs/other"]) == 0
    assert len(list(tokens.iterdir())) == 2, "other rows, other tokens"
    theirs = tokens / "mine" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("no tokens")
    (tokens / ".new.killed").mkdir()
    assert main(["prepare", str(task)]) == 0
    assert list(tokens.iterdir()) == [theirs.parent], "tokens of older rows are of no use"
