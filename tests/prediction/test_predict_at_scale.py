"""Prediction and evaluation by several real processes: each row once, as on one (R3)."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmft.cli import main
from tests.conftest import WORDS, make_recipe_writer, make_task_writer

NUM_ROWS = {"shard-0.parquet": 9_001, "shard-1.jsonl": 4_097, "shard-2.csv": 3}
COMMAND = ["runs/variant", "--input", "in/shard-*", "--output", "out"]


def make_rows(num_rows: int, *, seed: int) -> list[dict[str, str]]:
    generator = random.Random(seed)
    return [
        {
            "id": f"s{seed}r{i}",
            "title": generator.choice(WORDS) if i % 500 else "",
            "content": " ".join(generator.choices(WORDS, k=i % 7 + 1)) if i % 500 else "",
        }
        for i in range(num_rows)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A workspace with a trained run, three inputs, and what one process predicts of them."""
    folder = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_task_writer(folder)(num_rows=70)
        make_recipe_writer(folder)(tiny_bert)
        assert main(["prepare", "task.yaml"]) == 0
        assert main(["train", "variant.yaml"]) == 0
        Path("in").mkdir()
        parquet, jsonl, csv = (make_rows(n, seed=i) for i, n in enumerate(NUM_ROWS.values()))
        pq.write_table(pa.Table.from_pylist(parquet), "in/shard-0.parquet", row_group_size=1_000)
        Path("in/shard-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in jsonl))
        pd.DataFrame(csv).to_csv("in/shard-2.csv", index=False)
        assert main(["predict", *COMMAND]) == 0
        Path("out").rename("alone")
    return folder


@pytest.fixture
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    shutil.rmtree("out", ignore_errors=True)
    return trained


def launch(verb: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a verb in two processes, as a user would."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*torchrun, "--nproc_per_node", "2", "-m", f"llmft.{verb}", *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def read_folder(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def list_parts(folder: str) -> dict[str, int]:
    """Return the shards and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("shard-*")}


def find_process(launcher: int, *, rank: int) -> int:
    """Return the id of a process that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    marked = f"\0RANK={rank}\0".encode()
    (found,) = [c for c in children if marked in Path(f"/proc/{c}/environ").read_bytes()]
    return int(found)


def test_one_process_predicts_each_row_once_in_order(inside: Path) -> None:
    manifest = json.loads(Path("alone/_manifest.json").read_text())
    assert manifest["num_rows"] == sum(NUM_ROWS.values())
    assert manifest["num_empty"] == 19 + 9 + 1
    assert list(manifest["shards"].values()) == [4096, 4096, 809, 4096, 1, 3]
    ids, is_empty = [], []
    for name in manifest["shards"]:
        path = Path("alone", name)
        match path.suffix:
            case ".parquet":
                frame = pd.read_parquet(path)
            case ".csv":
                frame = pd.read_csv(path, keep_default_na=False, na_values={"prediction": ""})
            case _:
                frame = pd.read_json(path, lines=True)
        ids += list(frame["id"])
        is_empty += list(frame["prediction"].isna())
    assert ids == [f"s{s}r{i}" for s, n in enumerate(NUM_ROWS.values()) for i in range(n)]
    assert is_empty == [i % 500 == 0 for n in NUM_ROWS.values() for i in range(n)]


@pytest.mark.launched
def write_as(name: str, rows: list[dict[str, str]]) -> Path:
    """Write a table in the format of its name."""
    path, frame = Path("other", name), pd.DataFrame(rows)
    path.parent.mkdir(exist_ok=True)
    if ".json" in name and ".jsonl" not in name:
        content = json.dumps(rows).encode()
    elif ".jsonl" in name:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        content = frame.to_csv(index=False, sep="\t" if ".tsv" in name else ",").encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.tsv", "a.csv.gz", "a.jsonl.gz"])
def test_d24_an_input_may_be_whatever_prepare_reads(name: str, inside: Path) -> None:
    rows = [row for row in make_rows(40, seed=4) if row["content"]]
    plain, path = write_as("plain.jsonl", rows), write_as(name, rows)
    for given, output in ((plain, "plain-out.jsonl"), (path, "out.jsonl"), (path, "out")):
        assert main(["predict", "runs/variant", "--input", str(given), "--output", output]) == 0
    expected = pd.read_json("plain-out.jsonl", lines=True)
    found = pd.read_json("out.jsonl", lines=True)
    assert found.to_dict("list") == expected.to_dict("list")
    [shard] = [p for p in Path("out").iterdir() if p.name.startswith("a")]
    assert shard.suffix == (".jsonl" if ".json" in name else ".csv")
    assert len(shard.read_text().splitlines()) == len(rows) + (shard.suffix == ".csv")
    shutil.rmtree("out")
    for left in Path().glob("*out.jsonl"):
        left.unlink()


def test_two_inputs_whose_shards_would_have_one_name_are_refused(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(5, seed=4)
    both = [str(write_as(name, rows)) for name in ("b.csv", "b.tsv")]
    assert main(["predict", "runs/variant", "--input", *both, "--output", "out"]) == 2
    assert "would be named as b.csv; rename one" in capsys.readouterr().err


def test_r3_a_killed_process_costs_only_what_it_had_in_hand(inside: Path) -> None:
    """Two processes end with the bytes of one, though one of the two was killed on the way."""
    killed = launch("predict", *COMMAND)
    deadline = time.monotonic() + 120
    while not list_parts("out"):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(find_process(killed.pid, rank=1), signal.SIGKILL)
    said, _ = killed.communicate(timeout=120)
    assert killed.returncode != 0, said
    left = list_parts("out")
    assert 1 <= len(left) < 6
    assert not Path("out/_manifest.json").exists()

    again = launch("predict", *COMMAND)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert left.items() <= list_parts("out").items()  # not written again
    assert read_folder("out") == read_folder("alone")
    assert "wrote 13,101 rows to out" in said  # by whichever was the last one

    Path("out/_manifest.json").unlink()
    Path("out/shard-0-000000004096.parquet").unlink()
    before = list_parts("out")
    assert main(["predict", *COMMAND]) == 0  # with another number of processes
    assert before.items() <= list_parts("out").items()
    assert read_folder("out") == read_folder("alone")


@pytest.mark.launched
def test_r3_two_processes_evaluate_each_row_once(inside: Path) -> None:
    """Of 7 test rows one process has 4, the other 3."""
    run = Path("runs/variant")
    assert main(["evaluate", str(run)]) == 0
    stored, results = run / "predictions/test.parquet", run / "evaluation/test.json"
    alone, measured = pd.read_parquet(stored), json.loads(results.read_text())
    assert len(alone) % 2 == 1, "a share has to be larger than the other"
    stored.unlink()
    results.unlink()
    done = launch("evaluate", str(run))
    said, _ = done.communicate(timeout=240)
    assert done.returncode == 0, said
    assert said.count("decision: ") == 1
    found = pd.read_parquet(stored)
    assert list(found["id"]) == list(alone["id"])
    for name in alone.columns:
        if name.startswith("score"):
            assert list(found[name]) == pytest.approx(list(alone[name]), rel=1e-5)
        else:
            assert list(found[name]) == list(alone[name])
    metrics = json.loads(results.read_text())["metrics"]
    assert metrics == pytest.approx(measured["metrics"], rel=1e-5)


def predict(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the status of a prediction in this process, and what it complained of."""
    status = main(["predict", "runs/variant", *arguments])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--input", "in/shard-*", "--output", "out.jsonl"], "3 inputs need a folder"),
        (["--input", "in/shard-9*", "--output", "out"], "'in/shard-9*' matches no file below"),
        (
            ["--input", "in/shard-0*", "--output", "in"],
            "in is the folder of the input in/shard-0.parquet",
        ),
        (["--input", "in/shard-0*", "--output", "task.yaml"], "task.yaml: unknown ending"),
        (["--input", "task.yaml", "--output", "out"], "--input: task.yaml: unknown ending"),
        (["--input", "in/shard-1.jsonl", "twin/shard-1.jsonl", "--output", "out"],
         "the shards of several files would be named as shard-1.jsonl"),
    ],
)  # fmt: skip
def test_inputs_and_outputs_that_do_not_fit_are_refused(
    inside: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("twin").mkdir(exist_ok=True)
    shutil.copy("in/shard-1.jsonl", "twin")
    before = sorted(Path().rglob("*"))
    status, error = predict(capsys, *arguments)
    assert (status, complaint in error) == (2, True), error
    assert sorted(Path().rglob("*")) == before


def test_several_processes_do_not_write_one_file(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, error = predict(capsys, "--input", "in/shard-2.csv", "--output", "out.csv")
    assert (status, "several processes write shards; name a folder" in error) == (2, True)


def test_one_file_starts_again_when_its_input_changed_and_leaves_nothing_next_to_it(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"title": "bank", "content": "crisis", "n": n} for n in (1, 2.5, None)]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial = Path(".out.parquet.partial")
    (partial / "_state").mkdir(parents=True)
    (partial / "_state/run.json").write_text('{"model": "another"}')
    (partial / "new-000000000000.parquet").write_text("of another model")
    arguments = ["--input", "new.jsonl", "--output", "out.parquet"]
    assert predict(capsys, *arguments) == (0, "")
    found = pd.read_parquet("out.parquet")
    assert list(found["n"].dropna()) == [1, 2.5]
    assert found["prediction"].notna().all()
    assert not partial.exists()


def test_one_file_without_a_text_is_refused_and_leaves_nothing(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("new.jsonl").write_text('{"title": "", "content": null}\n')
    status, error = predict(capsys, "--input", "new.jsonl", "--output", "none.csv")
    assert (status, "no row can be predicted; empty text" in error) == (2, True)
    assert not list(Path().glob("*none.csv*"))
    Path("fine.jsonl").write_text('{"title": "bank", "content": "run"}\n')
    wanted = ["--input", "fine.jsonl", "new.jsonl", "--output", "none"]
    Path("new.jsonl").write_text('{"title": "bank"')
    assert predict(capsys, *wanted)[0] == 2
    assert not Path("none").exists(), "no state that keeps these inputs from being changed"
    assert predict(capsys, "--input", "fine.jsonl", "--output", "none") == (0, "")


def test_one_file_goes_on_from_the_parts_that_a_killed_command_left(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = Path(".out.parquet.partial")
    assert predict(capsys, "--input", "in/shard-0.parquet", "--output", "out") == (0, "")
    Path("out").rename(partial)
    kept = partial / "shard-0-000000000000.parquet"
    table = pq.read_table(kept)
    marked = pa.array([-1.0] * len(table))
    place = table.column_names.index("prediction")
    pq.write_table(table.set_column(place, "prediction", marked), kept)
    (partial / "shard-0-000000004096.parquet").unlink()
    assert predict(capsys, "--input", "in/shard-0.parquet", "--output", "out.parquet") == (0, "")
    found = pd.read_parquet("out.parquet")
    assert list(found["id"]) == [f"s0r{i}" for i in range(9_001)]
    assert (found["prediction"] == -1).sum() == len(table)  # taken over, not computed again
    assert not partial.exists()
