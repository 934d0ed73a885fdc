"""tmp."""
from pathlib import Path
from typing import Any
def write_evaluation_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Tmp."""
    return folder / "report.html"
