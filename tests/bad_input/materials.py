"""Bad input ends as a rejected row with its reason, or as one message and exit status 2.

Nothing is left half-written, and what an earlier command had finished stays as it was.
"""

import contextlib
import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from llmft.cli import main

TASK = """\
name: news
sources: [{path: rows.jsonl}]
fields: {id: id, text: [title, body], keep: [url]}
labels: {type: class, from: mood, map: {c: calm, t: tense}, exclude: [odd]}
filters: [{field: url, not_matches: "(?i)spam"}, {field: error, empty: true}]
clean: {min_chars: 3, max_chars: 6000000, drop: near, near_duplicates: 0.9}
split: {train: 0.6, val: 0.2, test: 0.2, stratify: false, seed: 7}
output: out
"""
RECIPE = """\
name: variant
task: task.yaml
base: {model: builtin:minilm, tuning: lora, lora: {rank: 4}}
head: {type: multiclass}
prompt: {mode: include, file: prompt.md}
tokens: {max_length: 256, min_article: 32, article: head_tail}
train: {epochs: 1, learning_rate: 1e-4}
output_dir: runs/variant
"""
PROMPT = "Rate the mood of this article.\n{title} from {url}\n{body}\nAnswer:"


def make_rows(num_rows: int = 30) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}",
            "title": f"title {i}",
            "body": " ".join(f"w{i}x{k}" for k in range(8)),
            "url": f"https://example.org/{i}",
            "mood": "ct"[i % 2],
        }
        for i in range(num_rows)
    ]


def dump_rows(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Outcome(NamedTuple):
    status: int
    message: str

    def check_refusal(self, *parts: str) -> None:
        """Assert status 2 and one message that holds these parts."""
        assert self.status == 2, self.message
        assert self.message.startswith("llmft: ")
        assert self.message.count("llmft: ") == 1
        assert "Traceback" not in self.message
        for part in parts:
            assert part in self.message


def run(*arguments: str) -> Outcome:
    """Run the command line in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(list(arguments))
    return Outcome(status, errors.getvalue())


def run_process(*arguments: str, max_file_bytes: int) -> Outcome:
    """Run the command line in a process whose files cannot grow beyond a size: a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "llmft", *arguments],
        capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stderr)


def list_files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden and temporary ones as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_rejected() -> list[tuple[int, str]]:
    with Path("out/rejected.jsonl").open(encoding="utf-8") as file:
        return [(row["line"], row["reason"]) for row in map(json.loads, file)]
