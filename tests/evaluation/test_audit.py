"""The audit finds what makes a comparison worthless (D1, D2, D5)."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest

from llmft.evaluation.audit import (
    Finding,
    RunFacts,
    check_baselines,
    check_data,
    check_inputs,
    check_overlap,
    check_run,
    check_seeds,
    check_treatment,
)
from llmft.evaluation.statistics import Difference, Interval
from llmft.evaluation.verdict import find_valid_arms, reach_verdict
from llmft.prediction.stored import StoredPredictions

METADATA: dict[str, Any] = {
    "recipe": {
        "name": "plain",
        "task": "t.yaml",
        "base": {"model": "bert", "tuning": "full"},
        "head": {"type": "regression"},
        "prompt": {"mode": "exclude", "file": None},
        "tokens": {"max_length": 256, "min_article": 64, "article": "head", "waive": None},
        "train": {
            "epochs": 3, "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-4,
            "warmup_ratio": 0.1, "weight_decay": 0.01, "seed": 1, "precision": "auto",
            "steps": None, "metric": None, "limit_rows": None, "report_to": [],
            "save_total_limit": 1, "gradient_checkpointing": False,
        },
        "output_dir": "runs/plain",
    },
    "data_fingerprint": "f",
    "prompt_sha256": None,
    "global_batch_size": 8,
    "precision": "float32",
    "budget_warnings": [],
    "base_pretrained": True,
}  # fmt: skip


def make_run(arm: str, **changes: Any) -> RunFacts:
    """Return a run; `train__epochs=4` changes the recipe, `precision="x"` the metadata."""
    metadata = copy.deepcopy(METADATA)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            metadata["recipe"][section][name] = value
        else:
            metadata[key] = value
    return RunFacts(arm, f"runs/{arm}", metadata)


def judge(*runs: RunFacts) -> set[str]:
    return {f.status for f in check_treatment([make_run("ref"), *runs], reference="ref")}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt__mode": "include", "prompt_sha256": "p"},
        {"tokens__max_length": 512},
        {"base__model": "qwen", "train__learning_rate": 2e-4, "train__epochs": 9},
        {"base__tuning": "lora", "train__warmup_ratio": 0.2},
        {"base__tuning": "lora", "train__steps": 100},
        {"train__metric": "mae"},  # what the head takes anyway
        {"train__seed": 2},
        {"train__batch_size": 4, "train__gradient_accumulation_steps": 2},  # same global batch
    ],
)
def test_d2_arms_may_differ_in_the_treatment(changes: dict[str, Any]) -> None:
    assert judge(make_run("other", **changes)) == {"ok"}


@pytest.mark.parametrize(
    "changes",
    [
        {"train__learning_rate": 2e-4},  # the base is the same, so the rate has to be
        {"train__epochs": 9},
        {"train__weight_decay": 0.1},
        {"base__model": "qwen", "train__weight_decay": 0.1},
        {"global_batch_size": 16},
        {"train__steps": 100},
        {"train__limit_rows": 100},
        {"train__metric": "rmse"},  # other checkpoints are chosen
        {"train__metric": "loss"},
        {"tokens__article": "head_tail"},  # the arms read other parts of the articles
    ],
)
def test_d2_anything_else_confounds(changes: dict[str, Any]) -> None:
    assert "confounded" in judge(make_run("other", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"train__report_to": ["wandb"]},
        {"train__save_total_limit": 3},
        {"train__gradient_checkpointing": True},
    ],
)
def test_what_hardly_matters_is_a_note(changes: dict[str, Any]) -> None:
    assert judge(make_run("other", **changes)) == {"note", "ok"}
    seeds = [make_run("arm"), make_run("arm", train__seed=2, **changes)]
    assert [f.status for f in check_seeds(seeds)] == ["note"]


def test_a_quick_trial_is_marked() -> None:
    assert check_run(make_run("arm")) == []
    (found,) = check_run(make_run("arm", train__limit_rows=200))
    assert (found.check, found.status, found.arms) == ("trial", "warning", ["arm"])
    assert "at most 200 rows (train.limit_rows)" in found.message


def test_d2_an_arm_trained_on_other_data_is_invalid() -> None:
    runs = [make_run("ref"), make_run("other", data_fingerprint="g")]
    findings = check_data(runs, fingerprint="f")
    assert [(f.status, f.arms) for f in findings] == [("invalid", ["other"])]
    assert find_valid_arms(["ref", "other"], findings) == ["ref"]


def see(kept: list[int], whole: list[int], hashes: list[str]) -> StoredPredictions:
    n = len(kept)
    return StoredPredictions(
        [str(i) for i in range(n)], np.zeros((n, 1)), np.array(whole), np.array(kept), hashes
    )


def test_d1_cut_articles_and_equal_inputs_are_told() -> None:
    seen = see([10, 5, 5], [10, 10, 20], ["h1", "h2", "h2"])
    findings = check_inputs("arm", seen, ["one", "two", "three"])
    assert [f.status for f in findings] == ["warning", "warning"]
    assert "50.0% of the article tokens; 2 of 3 rows cut" in findings[0].message
    assert "same input for 2 rows" in findings[1].message


def test_d1_equal_texts_may_have_equal_inputs() -> None:
    findings = check_inputs("arm", see([4, 4], [4, 4], ["h", "h"]), ["one", "one"])
    assert [f.status for f in findings] == ["ok"]


def test_d1_a_waiver_and_its_reason_are_repeated() -> None:
    run = make_run("arm", tokens__waive="only titles matter", base_pretrained=False)
    messages = [f.message for f in check_run(run)]
    assert any("only titles matter" in m for m in messages)
    assert any("never pretrained" in m for m in messages)


def test_d5_evaluated_texts_in_training_are_invalid() -> None:
    known = ["one " * 30, "two " * 30]
    assert [f.status for f in check_overlap(["three"], known, threshold=0.9)] == ["ok"]
    copies = [known[0], f"{known[1]} .", "three"]  # one word for word, one with a full stop
    found = check_overlap(copies, known, threshold=0.9)
    assert [(f.status, f.message[:6]) for f in found] == [("invalid", "2 of 3")]
    assert find_valid_arms(["ref", "other"], found) == []
    others = [f"word{i} " * 30 for i in range(99)]
    found = check_overlap([f"{known[1]} .", *others], known, threshold=0.9)
    assert [(f.status, f.message[:8]) for f in found] == [("warning", "1 of 100")]


def test_d2_runs_of_one_arm_may_differ_in_the_seed_only() -> None:
    seeds = [make_run("arm", train__seed=1), make_run("arm", train__seed=2)]
    assert check_seeds(seeds) == []
    mixed = [make_run("arm"), make_run("arm", base__model="qwen")]
    assert [(f.status, f.arms) for f in check_seeds(mixed)] == [("invalid", ["arm"])]
    assert "one seed only" in check_seeds([make_run("arm")])[0].message


def test_d2_another_rank_does_not_free_the_learning_rate() -> None:
    lora = {"base__tuning": "lora", "base__lora": {"rank": 8}}
    runs = [
        make_run("ref", **lora),
        make_run("other", base__tuning="lora", base__lora={"rank": 16}, train__learning_rate=1),
    ]
    assert "confounded" in {f.status for f in check_treatment(runs, reference="ref")}


def test_d9_an_arm_that_a_baseline_beats_is_warned_of() -> None:
    baselines = {"constant": 2.0, "tfidf": 1.0}
    found = check_baselines("mae", {"good": 0.9, "bad": 1.5}, baselines)
    assert [(f.status, f.arms) for f in found] == [("warning", ["bad"])]
    assert "tfidf" in found[0].message
    assert check_baselines("accuracy", {"a": 3.0}, baselines)[0].status == "ok"


BETTER = Difference(0.5, Interval(0.3, 0.7), "better")
WORSE = Difference(-0.1, Interval(-0.2, 0.0), "not better")
OPEN = Difference(0.2, Interval(0.0, 0.4), "unresolved")


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({"a": BETTER, "b": WORSE}, ("WINNER", "a")),
        ({"a": BETTER, "b": Difference(0.6, Interval(0.4, 0.8), "better")}, ("WINNER", "b")),
        ({"a": WORSE, "b": WORSE}, ("REFERENCE_HOLDS", "ref")),
        ({"a": OPEN, "b": WORSE}, ("UNRESOLVED", None)),
    ],
)
def test_the_verdict_follows_from_the_differences(differences, expected) -> None:
    found = reach_verdict(
        differences, valid_arms=["ref", "a", "b"], findings=[], reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == expected


@pytest.mark.parametrize(
    ("finding", "valid_arms", "expected"),
    [
        (Finding("x", "invalid", ["ref"], "other rows"), ["a", "b"], "INVALID"),
        (Finding("x", "invalid", ["a"], "other rows"), ["ref"], "INVALID"),
        (Finding("x", "confounded", ["a"], "epochs is 9"), ["ref", "a"], "CONFOUNDED"),
    ],
)
def test_d2_a_broken_comparison_has_no_winner(finding, valid_arms, expected: str) -> None:
    found = reach_verdict(
        {"a": BETTER}, valid_arms=valid_arms, findings=[finding], reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == (expected, None)
    assert finding.message in found.why


def test_d14_few_rows_are_named_as_the_reason() -> None:
    few = Difference(5.0, Interval(4.0, 6.0), "unresolved")
    found = reach_verdict(
        {"a": few}, valid_arms=["ref", "a"], findings=[], reference="ref", metric="mae", margin=0.1
    )
    assert found.name == "UNRESOLVED"
    assert "fewer than 20 test rows" in found.why


def test_a_metric_that_is_undefined_resolves_nothing() -> None:
    judge_arms = partial(
        reach_verdict, valid_arms=["ref", "a", "b"], findings=[], reference="ref",
        metric="roc_auc", margin=0.1,
    )  # fmt: skip
    found = judge_arms({"b": WORSE})
    assert (found.name, found.winner) == ("UNRESOLVED", None)
    assert "roc_auc is not defined for ref or a" in found.why
    assert judge_arms({"b": BETTER}).winner == "b"
    assert judge_arms({}).name == "UNRESOLVED"


def test_a_struck_out_arm_confounds_nobody() -> None:
    findings = [
        Finding("x", "invalid", ["b"], "other rows"),
        Finding("x", "confounded", ["b"], "epochs is 9"),
    ]
    found = reach_verdict(
        {"a": BETTER}, valid_arms=["ref", "a"], findings=findings, reference="ref", metric="mae",
        margin=0.1,
    )  # fmt: skip
    assert (found.name, found.winner) == ("WINNER", "a")
