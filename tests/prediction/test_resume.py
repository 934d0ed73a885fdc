"""What was predicted before a crash is not predicted again."""

from pathlib import Path

import pytest

from llmft.prediction import resume
from llmft.prediction.resume import predict_resumably

ROWS = [{"n": i} for i in range(10)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_ROWS_PER_CHUNK", 3)


def square(rows):
    return [{"prediction": row["n"] ** 2} for row in rows]


def run(predict, folder: Path, *, model: str = "m"):
    return predict_resumably(
        ROWS, predict=predict, folder=folder, identity={"model": model}, report=lambda _: None
    )


def test_a_killed_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    seen: list[int] = []

    def die_at_six(rows):
        if rows[0]["n"] == 6:
            raise KeyboardInterrupt
        return square(rows)

    def count(rows):
        seen.extend(row["n"] for row in rows)
        return square(rows)

    with pytest.raises(KeyboardInterrupt):
        run(die_at_six, tmp_path / "partial")
    assert run(count, tmp_path / "partial") == square(ROWS)
    assert seen == [6, 7, 8, 9]


def test_chunks_of_another_model_are_thrown_away(tmp_path: Path) -> None:
    run(lambda rows: [{"prediction": -1} for _ in rows], tmp_path / "partial", model="old")
    assert run(square, tmp_path / "partial", model="new") == square(ROWS)
    (tmp_path / "partial" / "state.json").unlink()  # nobody knows whose these are
    doubled = [{"prediction": 2 * row["n"]} for row in ROWS]
    found = run(lambda rows: [{"prediction": 2 * r["n"]} for r in rows], tmp_path / "partial")
    assert found == doubled
