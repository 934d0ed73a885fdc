"""tmp."""
from pathlib import Path
from typing import Any
def write_comparison_report(results: dict[str, Any], *, folder: Path) -> Path:
    """Tmp."""
    return folder / "report.html"
