"""Whatever the files hold: never a traceback, and every row is accounted for."""

import contextlib
import json
import string
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmft.config.task import SPLITS
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
