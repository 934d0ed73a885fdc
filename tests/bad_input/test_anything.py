"""Whatever the files hold: never a traceback, and every row is accounted for."""

import contextlib
import csv
import gzip
import io
import json
import random
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmft.config.task import SPLITS
from llmft.data.reading import is_asked_for
from tests.bad_input.materials import (
    PROMPT,
    RECIPE,
    TASK,
    dump_rows,
    make_rows,
    run,
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
strange_text = st.text(st.sampled_from('ab ,"\n\0é\ud800{}[]:'), max_size=12)
strange_rows = st.one_of(
    strange_text.map(lambda text: text.encode("utf-8", "replace")),
    anything.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            [*make_rows(1)[0], "score", "day", "flag"],
            st.sampled_from(["c", "t", 0, 1, "2024-01-01", 1e400]) | strange_text | anything,
        ),
    ).map(lambda row: json.dumps(row).encode()),
)


def mutate(text: str) -> st.SearchStrategy[str]:
    """Return a text with some of its words changed, cut out or doubled."""
    piece = st.text(st.sampled_from(string.printable + "é\x85"), max_size=4) | st.sampled_from(
        ["null", "[]", "{}", "-1", "1e400", ".nan", "true", "*a", "&a", "!!int", "<<", "{a: b}",
         "[[[", "hf://x", "../..", "/", "x" * 300]
    )  # fmt: skip

    def apply(edits: list[tuple[int, int, str]]) -> str:
        changed = text
        for start, length, new in edits:
            at = start % (len(changed) + 1)
            changed = changed[:at] + new + changed[at + length :]
        return changed

    edit = st.tuples(st.integers(0, 10_000), st.sampled_from([0, 1, 3, 9, 40]), piece)
    return st.lists(edit, min_size=1, max_size=3).map(apply)


def check_prepared(folder: Path, num_input: int | None = None) -> None:
    """Assert that every row is in one place and that the manifest says so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    found = {name: (folder / f"{name}.jsonl").read_bytes() for name in (*SPLITS, "rejected")}
    assert {name: content.count(b"\n") for name, content in found.items()} == {
        name: counts[name] for name in found
    }
    assert counts["input"] + counts["repeated"] == sum(counts[name] for name in found)
    assert sum(manifest["rejected"].values()) == counts["rejected"]
    if num_input is not None:
        assert counts["input"] == num_input
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


ROWS_TASK = """\
name: news
sources: [{path: PATH}]
fields: {id: id, text: [title, body]}
labels: {type: class, from: mood}
split: {train: 0.6, val: 0.2, test: 0.2, stratify: false}
output: out
"""
SETTINGS = [
    "fields.id=null",
    "fields.group=url",
    "fields.text_pair=url",
    "fields.keep=[day]",
    "labels={type: scores, from: score, dimensions: [risk], tiers: {low: 0, high: 5}}",
    "labels={type: class, from: [flag], otherwise: none}",
    "labels={type: class, from: mood, order: [t, c]}",
    "labels={type: multilabel, from: [flag]}",
    "split.by=day",
    "split.by=score",
    "split.stratify=true",
    "balance={reduce_majority_to: 1, oversample: 1}",
    "filters=[{field: score, min: 1}, {field: flag, not_in: [2]}, {field: day, matches: '20'}]",
    "filters=[{field: error, empty: true}, {field: url, empty: false}]",
    "clean={drop: none, min_chars: 2, max_chars: 100}",
    "clean={drop: near, near_duplicates: 0.2}",
    "sources=[{path: PATH, encoding: latin-1}]",
]


def make_good_lines(*, is_csv: bool) -> list[bytes]:
    rows = [
        {**row, "score": i % 11, "day": f"2024-01-{i + 1:02}", "flag": i % 2}
        for i, row in enumerate(make_rows())
    ]
    if not is_csv:
        return [json.dumps(row).encode() for row in rows]
    return [b"id,title,body,url,mood,score,day,flag"] + [
        ",".join(map(str, row.values())).encode() for row in rows
    ]


@quick
@given(
    st.lists(strange_rows, max_size=12),
    st.sampled_from([b"", b"", b"", b"\xff\xfe", b"\xe9"]),
    st.booleans(),
    st.lists(st.sampled_from(SETTINGS), max_size=3),
)
def test_any_bytes_as_rows_are_accounted_for_or_refused(
    strange: list[bytes], rubbish: bytes, is_csv: bool, overrides: list[str]
) -> None:
    name = "rows.csv" if is_csv else "rows.jsonl"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        lines = [*make_good_lines(is_csv=is_csv), *strange]
        Path(name).write_bytes(b"\n".join(lines) + rubbish)
        Path("task.yaml").write_text(ROWS_TASK.replace("PATH", name))
        options = [f"--set={override.replace('PATH', name)}" for override in overrides]
        outcome = run("prepare", "task.yaml", *options)
        assert outcome.status in (0, 2), outcome.message
        if outcome.status == 0:
            check_prepared(Path("out"))
        else:
            outcome.check_refusal()
            assert not Path("out").exists()


@quick
@given(st.sampled_from(["task.yaml", "recipe.yaml", "prompt.md"]), st.data())
def test_any_yaml_and_prompt_is_understood_or_refused(name: str, data: st.DataObject) -> None:
    texts = {"task.yaml": TASK, "recipe.yaml": RECIPE, "prompt.md": PROMPT}
    text = data.draw(mutate(texts[name]))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("rows.jsonl").write_text(dump_rows(make_rows(12)))
        for other, content in {**texts, name: text}.items():
            Path(other).write_text(content, encoding="utf-8", newline="")
        prepare = ["prepare", "task.yaml", "--set", "output=out"]  # and nowhere else
        for command in (prepare, ["check", "recipe.yaml", "--no-data"]):
            outcome = run(*command)
            assert outcome.status in (0, 2), outcome.message
            if outcome.status == 2:
                outcome.check_refusal()
        if Path("out").exists():
            check_prepared(Path("out"))


# Some hundreds of files as people have them: each kind of value, each kind of file.

_COLUMNS = ("id", "text", "mood", "score", "day", "tags")
_TASKS = {
    "class": "{type: class, from: mood}",
    "scores": "{type: scores, dimensions: [score]}",
    "labels": "{type: multilabel, from: tags}",
}
_VALUES: dict[str, list[Any]] = {
    "id": [7, 7.0, "007", "7", None, "", "\u200b", True],
    "text": ["", "\u200b", "\ufeff", None, "null", "None", "x" * 5_000, "a\0b", "é\x85\u2028", 5],
    "mood": [1, 1.0, "1", "1.0", True, "True", "Calm", "calm ", "ca\u200blm", "007", None, "nan",
             "None", ["calm"], {"a": 1}, float("nan"), float("inf"), "1,0"],
    "score": [7, "7", "7.5", "7,5", "1_0", "nan", float("nan"), float("inf"), None, "", "ten", True,
              "0x1", 99, [7], {"score": 7}],
    "tags": [["a"], ["a", "b"], [], "a, b", "a", "", None, "['a', 'b']", '["a"]', [1, 2.0], [None],
             [["a"]], {"a": 1}],
    "day": ["2024/1/5", "2024-1-5", "2024-01-05T09:00", "5.1.2024", "31 Jan 2024", 2024, "2024",
            "20240105", "soon", None, ""],
}  # fmt: skip


def make_table(draw: random.Random) -> list[dict[str, Any]]:
    """Return good rows, of which one column has other values in a few, many or all rows."""
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{i}", "text": " ".join(f"w{i}x{k}" for k in range(8)),
            "mood": ["calm", "tense"][i % 2], "score": i % 11, "day": f"2024-01-{i % 28 + 1:02}",
            "tags": [["a"], ["b"], ["a", "b"]][i % 3],
        }
        for i in range(draw.choice([12, 40, 80]))
    ]  # fmt: skip
    for _ in range(draw.choice([0, 1, 1, 2])):
        column = draw.choice(_COLUMNS)
        values = draw.sample(_VALUES[column], k=draw.choice([1, 1, 2, 4]))
        share = draw.choice([0.03, 0.2, 0.5, 1.0])
        for row in rows:
            if draw.random() < share:
                row[column] = draw.choice(values)
    return rows


def save_table(rows: list[dict[str, Any]], draw: random.Random) -> str:
    """Save the rows in some format, encoding and compression; return the name."""
    kind = draw.choice(["csv", "tsv", "csv", "jsonl", "json", "jsonl"])
    if kind in ("csv", "tsv"):
        text = io.StringIO()
        separator = draw.choice([",", ",", ";"]) if kind == "csv" else "\t"
        writer = csv.writer(text, delimiter=separator)
        if draw.random() < 0.9:
            writer.writerow(_COLUMNS)
        for row in rows:
            cells = [json.dumps(v) if isinstance(v, list | dict) else v for v in row.values()]
            writer.writerow(cells[: len(cells) - (draw.random() < 0.02)])
        content = text.getvalue()
    elif kind == "json":
        content = json.dumps(rows)
    else:
        content = dump_rows(rows)
    encoding = draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    data = content.encode(encoding, "replace")
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data))]
    if draw.random() < 0.1:
        at = draw.randrange(len(data))
        data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    name = f"rows.{kind}"
    if draw.random() < 0.2:
        data = gzip.compress(data)
        name += draw.choice([".gz", ".gz", ""])
    Path(name).write_bytes(data)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(400))
def test_d24_files_of_every_kind_lose_no_more_than_they_say(seed: int, workspace: Path) -> None:
    draw = random.Random(seed)
    rows = make_table(draw)
    name = save_table(rows, draw)
    by = ", by: day" if draw.random() < 0.3 else ""
    Path("task.yaml").write_text(
        f"name: news\nsources: [{{path: {name}}}]\nfields: {{id: id}}\n"
        f"labels: {_TASKS[draw.choice(list(_TASKS))]}\nclean: {{drop: none}}\n"
        f"split: {{train: 0.6, val: 0.2, test: 0.2, stratify: false{by}}}\noutput: out\n"
    )
    outcome = run("prepare", "task.yaml")
    assert outcome.status in (0, 2), outcome.message
    if outcome.status == 2:
        outcome.check_refusal()
        assert not Path("out").exists()
        return
    check_prepared(Path("out"))
    manifest = json.loads(Path("out/manifest.json").read_text())
    num_input = manifest["counts"]["input"]
    for reason, count in manifest["rejected"].items():
        assert num_input < 20 or reason == "repeated row" or count <= 0.05 * num_input
    for split in SPLITS:
        for row in map(json.loads, Path(f"out/{split}.jsonl").read_text("utf-8").split("\n")[:-1]):
            assert row["text"].strip("\u200b\ufeff ")
            assert row["id"]


# Some hundreds of YAML files with the slips that people make.

_FILES = {
    "task.yaml": TASK,
    "recipe.yaml": RECIPE,
    "suite.yaml": """\
task: task.yaml
variants: {one: {recipe: recipe.yaml, seeds: [1, 2, 3]}, two: runs/two}
reference: one
metric: f1_macro
margin: 0.02
slices: [url]
gates: {f1_macro: {deploy: 0.8, review: 0.7}, class_recall: {deploy: 0.5}}
waive: [{check: comparability, variants: [two], reason: trained before}]
latency: {batch_size: 4}
output_dir: reports/news
""",
}
_SLIPS: list[Any] = [
    None, True, False, "yes", "no", "", " ", 0, 1, -1, 1.5, "1e-4", "1_000", float("nan"),
    float("inf"), 10**30, [], {}, [None], [[]], {"a": 1}, {1: 2}, {None: None}, "a, b", "~/x",
    "../x", "/", "mood ", "MOOD", "mo\u200bod", "é", "\u201cmood\u201d", "{title}", "*", "null",
    "2024-01-05", "x" * 400, [1, "1"], {"type": "class"}, "hf://x", "builtin:minilm", "a\nb",
    "\x07",
]  # fmt: skip


def list_places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every value in nested lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inner:
        found.append((*at, key))
        if isinstance(one, dict | list):
            found += list_places(one, (*at, key))
    return found


def slip(values: Any, draw: random.Random) -> None:
    """Change, remove, rename, wrap or repeat one of the values."""
    *way, last = draw.choice(list_places(values))
    inner = values
    for key in way:
        inner = inner[key]
    kind = draw.choice(["value", "value", "value", "remove", "rename", "wrap", "swap", "add"])
    match kind:
        case "value":
            inner[last] = draw.choice(_SLIPS)
        case "remove":
            del inner[last]
        case "wrap":
            inner[last] = draw.choice([[inner[last]], {"value": inner[last]}, str(inner[last])])
        case "rename" if isinstance(inner, dict):
            new = draw.choice([str(last).upper(), f"{last}s", str(last)[:-1], "x", 7, None, True])
            inner[new] = inner.pop(last)
        case "swap":
            other = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner[last], inner[other] = inner[other], inner[last]
        case _ if isinstance(inner, dict):
            inner[draw.choice(["seed", "name", "type", "path", "epochs", 3])] = draw.choice(_SLIPS)


def misspell(text: str, draw: random.Random) -> str:
    """Change the text of a YAML file as an editor or a tired person does."""
    lines = text.splitlines()
    at = draw.randrange(len(lines))
    match draw.choice(["none", "none", "none", "tab", "twice", "indent", "colon", "quote", "bom"]):
        case "tab":
            lines[at] = "\t" + lines[at]
        case "twice":
            lines.insert(at, lines[at])
        case "indent":
            lines[at] = " " + lines[at]
        case "colon":
            lines[at] = lines[at].replace(": ", ":", 1)
        case "quote":
            lines[at] = lines[at].replace(" ", ' "', 1)
        case "bom":
            lines[0] = "\ufeff" + lines[0]
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_d24_yaml_with_slips_is_understood_or_refused(seed: int, workspace: Path) -> None:
    draw = random.Random(seed)
    name = draw.choice(list(_FILES))
    for other, text in _FILES.items():
        if other == name:
            values = yaml.safe_load(text)
            for _ in range(draw.choice([1, 1, 2, 3])):
                slip(values, draw)
            text = misspell(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), draw)
        Path(other).write_text(text, encoding="utf-8")
    Path("rows.jsonl").write_text(dump_rows(make_rows(60)))
    Path("prompt.md").write_text(PROMPT)
    prepare = ["prepare", "task.yaml", "--set", "output=out"]  # and nowhere else
    for command in (prepare, ["check", "recipe.yaml", "--no-data"], ["compare", "suite.yaml"]):
        outcome = run(*command)
        assert outcome.status in (0, 2), outcome.message
        if outcome.status == 2:
            outcome.check_refusal()
    if Path("out").exists():
        check_prepared(Path("out"))
        manifest = json.loads(Path("out/manifest.json").read_text())
        lost = [n for why, n in manifest["rejected"].items() if not is_asked_for(why)]
        assert sum(lost) <= 0.05 * manifest["counts"]["input"] or "max_rejected" in text
