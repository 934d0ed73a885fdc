"""`llmft init --from FILE`: from a table to a suite that runs."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from llmft.cli import main
from llmft.config.recipe import load_recipe
from llmft.config.suite import load_suite
from tests.data.test_columns import make_rows, name_mood, write_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(name: str, *, delimiter: str = ",", encoding: str = "utf-8", header: bool = True,
                columns: tuple[str, str] = ("text", "mood")) -> Path:  # fmt: skip
    path = Path(name)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(columns)
        writer.writerows([f"{write_text(i)} é", name_mood(i)] for i in range(100))
    return path


@pytest.mark.parametrize(
    ("name", "settings", "source"),
    [
        ("plain.csv", {}, {}),
        ("plain.tsv", {"delimiter": "\t"}, {}),
        ("packed.csv.gz", {}, {}),
        ("semicolons.csv", {"delimiter": ";"}, {"delimiter": ";"}),
        ("bars.csv", {"delimiter": "|", "encoding": "latin-1"},
         {"delimiter": "|", "encoding": "latin-1"}),
        ("wide.csv", {"encoding": "utf-16"}, {"encoding": "utf-16"}),
        ("bare.csv", {"header": False}, {"columns": ["column_1", "column_2"]}),
        ("odd.csv", {"columns": ("Text: dér", "yes")}, {}),
        ("jv.csv", {"columns": ("ꦠꦺꦏ꧀ꦱ꧀", "#golongan")}, {}),
    ],
)  # fmt: skip
def test_a_table_becomes_a_task_that_can_be_prepared_as_it_lies_there(
    name: str, settings: dict[str, str], source: dict[str, str]
) -> None:
    write_table(name, **settings)  # type: ignore[arg-type]
    assert main(["init", "--from", name, "first try"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("first try")
        suite = load_suite("eval/first_try.yaml")
        assert suite.task.sources[0].model_dump(exclude_defaults=True) == {
            "path": f"../{name}", **source
        }  # fmt: skip
        assert main(["prepare", "recipes/tasks/first_try.yaml"]) == 0
        manifest = json.loads(Path("datasets/training/first_try/manifest.json").read_text())
        assert sum(manifest["counts"][split] for split in ("train", "val", "test")) == 100
        for variant in ("frozen", "minilm"):
            recipe = f"recipes/first_try_{variant}.yaml"
            assert load_recipe(recipe).config.head.type == "multiclass"
            assert main(["check", recipe]) == 0


def test_the_table_of_guesses_and_the_next_command_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_table("mood.csv")
    assert main(["init", "--from", "mood.csv", "mood"]) == 0
    assert capsys.readouterr().out == (
        "read 100 rows of mood.csv\n"
        "  column  taken as  why\n"
        "  text    text      free text, median 14 words, longest 14\n"
        "  mood    label     3 classes: bad 34, good 33, fine 33\n"
        "wrote task, recipes and suite to mood; next:\n"
        "  cd mood && llmft compare eval/mood.yaml --train\n"
    )


def test_every_part_of_a_task_that_was_guessed_can_be_mended() -> None:
    rows = make_rows(
        {
            "body": write_text,
            "title": lambda i: f"A title of {i}",
            "user": lambda i: f"u{i % 40}",
            "day": lambda i: f"2024-02-{1 + i % 28:02}",
            "score: a": lambda i: i / 10,
            "b": lambda i: 9 - i / 20,
        }
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["init", "--from", "rows.jsonl", "--base", "some/base", "own"]) == 0
    task = Path("own/recipes/tasks/own.yaml").read_text()
    for line in (
        "  text: [title, body]     # guessed: joined by a blank line, in this order",
        "  group: user     # guessed: its rows stay in one split; remove it if they need not",
        '  dimensions: ["score: a", b]',
        "  range: [0, 10]     # guessed: lowest and highest; a score outside rejects its row",
    ):
        assert line in task.splitlines()
    assert "# `by: day` tests on the latest rows" in task
    suite = Path("own/eval/own.yaml").read_text()
    assert "margin: 0.1  " in suite
    assert "  own: {recipe: recipes/own_own.yaml, seeds: [1]}" in suite
    assert "base: {model: some/base, tuning: lora}" in Path("own/recipes/own_own.yaml").read_text()


def test_large_tables_are_cut_to_what_ends_in_minutes() -> None:
    rows = [{"text": f"{write_text(i % 100)} {i}" * 12, "score": i % 11} for i in range(4000)]
    Path("large.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["init", "--from", "large.jsonl", "large"]) == 0
    train = load_recipe("large/recipes/large_minilm.yaml").config
    frozen = load_recipe("large/recipes/large_frozen.yaml").config
    assert (train.train.epochs, train.tokens.max_length) == (3, 256)
    assert train.train.limit_rows == frozen.train.limit_rows
    assert train.train.limit_rows is not None
    assert 800 < train.train.limit_rows < 2000


@pytest.mark.parametrize(
    "options",
    [
        ["--label", "mood", "--text", "text", "DIR"],
        ["--text", "text", "--label", "mood", "DIR"],
        ["DIR", "--label", "mood"],
        ["--label", "mood", "--", "DIR"],
    ],
)
def test_the_folder_may_stand_behind_the_columns(options: list[str]) -> None:
    write_table("rows.csv")
    assert main(["init", "--from", "rows.csv", *options]) == 0
    assert Path("DIR/eval/dir.yaml").is_file()


@pytest.mark.parametrize("folder", ["2024", "null", "1e5", "Größe", "a b"])
def test_any_folder_name_becomes_the_name_of_a_task(folder: str) -> None:
    write_table("rows.csv")
    assert main(["init", "--from", "rows.csv", folder]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (suite,) = Path("eval").glob("*.yaml")
        assert len(load_suite(suite).config.variants) == 2


def test_a_header_that_names_a_class_is_a_header() -> None:
    rows = [f"words of text {i},{'spam' if i % 2 else 'ham'}" for i in range(60)]
    Path("spam.csv").write_text("\n".join(["text,spam", *rows]))
    assert main(["init", "--from", "spam.csv", "own"]) == 0
    assert "columns" not in Path("own/recipes/tasks/own.yaml").read_text()


def test_a_folder_as_base_is_named_as_seen_from_the_new_one(tiny_bert: Path) -> None:
    write_table("rows.csv")
    Path("base").symlink_to(tiny_bert)
    assert main(["init", "--from", "rows.csv", "--base", "base", "own"]) == 0
    assert load_recipe("own/recipes/own_own.yaml").config.base.model == "../base"


def test_files_of_the_user_are_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    write_table("rows.csv")
    assert main(["init", "--from", "rows.csv", "own"]) == 0
    assert main(["init", "--from", "rows.csv", "own"]) == 0
    task = Path("own/recipes/tasks/own.yaml")
    task.write_text(task.read_text() + "# mine\n")
    Path("own/eval/own.yaml").unlink()
    assert main(["init", "--from", "rows.csv", "own"]) == 2
    assert "own/recipes/tasks/own.yaml: exists already" in capsys.readouterr().err
    assert not Path("own/eval/own.yaml").exists()
    Path("own/eval/own.yaml").write_bytes("# é".encode("latin-1"))
    assert main(["init", "--from", "rows.csv", "own"]) == 2
    assert task.read_text().endswith("# mine\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "absent.csv", "own"], "'absent.csv' matches no file below"),
        (["--from", "rows.xlsx", "own"], "unknown ending; allowed: .jsonl"),
        (["--from", "zip.csv", "own"], "a zip archive, as Excel (.xlsx) writes it"),
        (["--from", "rows.csv"], "name the folder to write to, DIR"),
        (["--from", "rows.csv", "--label", "mood", "text"], "DIR: text is a column of rows.csv"),
        (["--from", "", "own"], "--from: is empty"),
        (["--from", "rows.csv", "--base", "", "own"], "--base: is empty"),
        (["--from", "torn.csv", "own"], "torn.csv:2: broken CSV: 3 cells, the header has 2"),
        (["--label", "mood", "--", "own"], "are for a table of your own: add --from FILE"),
        (["--from", "empty.csv", "own"], "empty.csv"),
        (["--from", "text.csv", "own"], "no column looks like labels"),
    ],
)
def test_what_cannot_be_read_leaves_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table("rows.csv")
    Path("rows.xlsx").write_bytes(b"PK\x03\x04")
    Path("zip.csv").write_bytes(b"PK\x03\x04" * 9)
    Path("empty.csv").write_text("")
    Path("torn.csv").write_text("text,mood\n" + "a,b,c\n" * 9 + "d,e\n" * 90)
    Path("text.csv").write_text("text\n" + "".join(f"{write_text(i)}\n" for i in range(50)))
    try:
        status = main(["init", *arguments])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not Path("own").exists()
