"""The spine on real articles: 550 of them, scored on 8 dimensions by an LLM.

Run with `pytest -m real -s`; the figures are printed.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmft.cli import main

HERE = Path(__file__).parent
DATA = Path(os.environ.get("LLMFT_REAL_DATA", HERE.parents[2] / "shared/data")) / "seece"

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the data set is not here"),
]


@pytest.fixture
def seece(workspace: Path) -> Path:
    """Recipes, task and suite in a working folder that reads the data where it lies."""
    for path in HERE.glob("*.yaml"):
        shutil.copy(path, workspace)
    task = workspace / "seece.yaml"
    task.write_text(task.read_text().replace("labeled_batch", f"{DATA}/labeled_batch"))
    shutil.copy(DATA / "prompt-compressed.md", workspace)
    return workspace


def test_minilm_beats_both_baselines_over_five_splits(seece: Path) -> None:
    found = []
    for seed in range(1, 6):
        task = (seece / "seece.yaml").read_text().replace("seed: 1", f"seed: {seed}")
        (seece / f"seece{seed}.yaml").write_text(
            task.replace("training/seece", f"training/seece{seed}")
        )
        assert main(["prepare", f"seece{seed}.yaml"]) == 0
        run = f"runs/minilm{seed}"
        overrides = [f"task=seece{seed}.yaml", f"train.seed={seed}", f"output_dir={run}"]
        arguments = [part for o in overrides for part in ("--set", o)]
        assert main(["train", "seece_minilm.yaml", *arguments]) == 0
        assert main(["evaluate", run]) == 0
        results = json.loads((seece / run / "evaluation/test.json").read_text())
        variants = {
            "minilm": results["metrics"],
            **{name: b["metrics"] for name, b in results["baselines"].items()},
        }
        found.append({variant: (m["mae"], m["skill"]) for variant, m in variants.items()})
        print(
            seed, {variant: tuple(round(v, 3) for v in pair) for variant, pair in found[-1].items()}
        )
    for variant in found[0]:
        mae, skill = np.array([f[variant] for f in found]).T
        print(
            f"{variant}: test mae {mae.mean():.3f} (sd {mae.std(ddof=1):.3f}), "
            f"skill {skill.mean():.3f} (sd {skill.std(ddof=1):.3f})"
        )
    mean = {variant: np.mean([f[variant] for f in found], axis=0) for variant in found[0]}
    assert mean["minilm"][1] > 0.36
    assert mean["minilm"][0] < min(mean["constant"][0], mean["tfidf"][0])


def test_tiny_qwen2_with_and_without_the_prompt_gets_a_real_verdict(seece: Path) -> None:
    assert main(["compare", "seece_suite.yaml", "--train"]) == 0
    results = json.loads((seece / "reports/seece/comparison.json").read_text())
    assert results["verdict"] in ("WINNER", "REFERENCE_HOLDS", "UNRESOLVED")
    seen = results["variants"]["instruction"]["token_budget"]
    assert seen["prompt_tokens"] > 5_000
    assert seen["fraction_kept"] > 0.9
