"""`llmft bench`: a tiny run end to end, and what it refuses."""

import json
from pathlib import Path

import pytest

from llmft.bench import format_table, main
from llmft.errors import UserError
from llmft.models.device import list_precisions

TINY = ["--num-rows", "5", "--batch-size", "2", "--max-length", "12", "--num-rounds", "1"]
KEYS = {
    "base", "dtype", "speedup_vs_classic_loop", "speedup_vs_trainer", "flop_utilisation",
    "seconds_ours", "seconds_trainer", "seconds_classic_loop", "num_rows", "num_steps",
}  # fmt: skip


@pytest.mark.slow
def test_article_only_measures_both_bases_on_given_articles(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"head": f"Bank {i}", "body": "calm market " * i} for i in range(7)]
    rows.append({"head": "", "body": None})
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--data", "a.jsonl", "--text", "head", "body", "--json", "out/found.json"]
    assert main(["article-only", *TINY, *given]) == 0
    found = json.loads(Path("out/found.json").read_text())
    assert [entry["base"][:6] for entry in found[:: len(list_precisions())]] == ["MiniLM", "Qwen2 "]
    for entry in found:
        assert entry.keys() >= KEYS
        assert (entry["num_rows"], entry["num_steps"]) == (4, 2)
        assert entry["speedup_vs_trainer"] > 0
        assert entry["flop_utilisation"] > 0


@pytest.mark.slow
def test_short_texts_tells_the_ratio_and_where_the_time_goes(workspace: Path) -> None:
    assert main(["short-texts", *TINY, "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert [entry["dtype"] for entry in found] == list_precisions()
    for entry in found:
        assert (entry["num_rows"], entry["num_steps"]) == (4, 2)
        assert entry["seconds_per_step"] > 0
        assert entry[f"speedup_vs_trainer_{entry['dtype']}"] > 0
        shares = [value for key, value in entry.items() if key.startswith("share_")]
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--data", "a.txt"], "--data: a.txt: unknown ending"),
        (["--text", "titel"], "Did you mean `title`"),
        (["--num-rows", "3", "--batch-size", "4"], "use a smaller batch"),
    ],
)
def test_what_cannot_be_measured_is_reported(
    workspace: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(["article-only", *arguments])


@pytest.mark.parametrize("text", ["-1", "0", "many"])
def test_counts_are_whole_and_positive(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["article-only", "--num-rows", text])
    message = f"argument --num-rows: {text!r} is not an integer above 0"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", str(2**32), "0.5"])
@pytest.mark.parametrize("what", ["article-only", "shared-prompt", "prompt-growth"])
def test_seeds_are_those_of_recipes(
    what: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([what, "--seed", text])
    assert f"argument --seed: {text!r} is not an integer from 0" in capsys.readouterr().err


def test_a_table_has_a_column_a_key() -> None:
    lines = format_table([{"base": "a", "speedup": 2.0}, {"base": "bcd", "speedup": 12.3456}])
    assert lines == ["base  speedup", "   a        2", " bcd     12.3"]
