"""Write files into the working folder."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(workspace: Path) -> Callable[[str, str], Path]:
    """Write a text file below the working folder; return its path relative to that folder."""

    def write_file(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
