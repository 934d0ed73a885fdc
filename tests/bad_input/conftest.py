"""Good files, of which a test changes one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.materials import (
    PROMPT,
    RECIPE,
    TASK,
    dump_rows,
    make_rows,
)


@pytest.fixture
def write(workspace: Path) -> Callable[..., None]:
    """Write a task, its rows and a recipe that are good but for what is passed."""

    def write_files(
        rows: str | bytes | None = None, *, task: str = TASK, recipe: str = RECIPE,
        prompt: str = PROMPT, name: str = "rows.jsonl",
    ) -> None:  # fmt: skip
        content = dump_rows(make_rows()) if rows is None else rows
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        Path("task.yaml").write_text(task)
        Path("recipe.yaml").write_text(recipe)
        Path("prompt.md").write_text(prompt)

    return write_files
