"""The audit finds what makes a comparison worthless (D1, D2, D4 to D6, D8, D9)."""

import ast
import copy
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import llmft
from llmft.audit.collapsed_predictions import check_baselines, check_collapsed_predictions
from llmft.audit.comparability import (
    check_data,
    check_replicates,
    check_run,
    check_test_use,
    check_treatment,
)
from llmft.audit.contamination import check_overlap, find_contaminated_rows, find_quoted_rows
from llmft.audit.findings import RunFacts
from llmft.audit.truncation import check_inputs, check_oracle_view
from llmft.config.suite import Check
from llmft.config.task import OracleViewConfig
from llmft.evaluation.verdict import find_valid_variants
from llmft.prediction.stored import StoredPredictions
from llmft.results.evaluation import Finding
from llmft.results.run import Pooling, ResolvedDefaults
from tests.results.made_up import make_budget, make_recipe, make_record

SECTIONS: dict[str, dict[str, Any]] = {
    "base": {"model": "bert"},
    "head": {"type": "regression"},
    "prompt": {"mode": "exclude"},
    "tokens": {"max_length": 256, "min_article": 64},
    "train": {
        "batch_size": 8, "learning_rate": 1e-4, "warmup_ratio": 0.1, "weight_decay": 0.01,
        "seed": 1,
    },
}  # fmt: skip
RECORD = make_record(
    global_batch_size=8,
    precision="float32",
    token_budget={"test": make_budget(prompt_tokens=240)},
    git_revision="rev",
)


def make_run(variant: str, **changes: Any) -> RunFacts:
    """Return a run; `train__epochs=4` changes the recipe, `precision="x"` the record."""
    sections, others = copy.deepcopy(SECTIONS), {}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            sections[section][name] = value
        else:
            others[key] = value
    if sections["prompt"]["mode"] == "include":
        sections["prompt"].setdefault("file", "p.md")
    recipe = make_recipe(name="plain", output_dir="runs/plain", **sections)
    return RunFacts(variant, f"runs/{variant}", RECORD.replace(recipe=recipe, **others))


def judge(*runs: RunFacts) -> set[str]:
    return {f.status for f in check_treatment([make_run("ref"), *runs], reference="ref")}


def find_replicates(runs: list[RunFacts]) -> list[Finding]:
    return check_replicates(runs)


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
        {"tokens__min_article": 4, "tokens__waive": "on purpose"},  # they change no training
        {"train__batch_size": 4, "train__gradient_accumulation_steps": 2},  # same global batch
    ],
)
def test_d2_variants_may_differ_in_the_treatment(changes: dict[str, Any]) -> None:
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
        {"tokens__article": "head_tail"},  # the variants read other parts of the articles
    ],
)
def test_d2_anything_else_confounds(changes: dict[str, Any]) -> None:
    assert "confounded" in judge(make_run("other", **changes))


def test_d2_a_declared_treatment_takes_the_place_of_the_default() -> None:
    runs = [make_run("ref"), make_run("other", base__model="qwen", train__epochs=9)]
    declared = partial(check_treatment, runs, reference="ref")
    assert {f.status for f in declared(treatment=["base", "train.epochs"])} == {"ok"}
    (found,) = [f for f in declared(treatment=["train.epochs"]) if f.status == "confounded"]
    assert found.message == "base.model is qwen in other and bert in ref"


@pytest.mark.parametrize(
    "changes",
    [{"global_batch_size": 16}, {"train__metric": "rmse"}, {"tokens__article": "head_tail"}],
)
def test_d2_some_things_have_to_agree_whatever_the_treatment(changes: dict[str, Any]) -> None:
    runs = [make_run("ref"), make_run("other", **changes)]
    found = check_treatment(runs, reference="ref", treatment=["train", "tokens"])
    assert "confounded" in {f.status for f in found}


def test_d2_other_weights_under_the_name_of_a_base_are_found() -> None:
    runs = [make_run("ref"), make_run("other")._replace(base_weights="other")]
    found = check_treatment(runs, reference="ref", treatment=["prompt"])
    assert {f.status for f in found} == {"confounded"}


def test_d2_weights_begun_with_and_fits_may_not_differ() -> None:
    assert judge(make_run("other", init_hash="h")) == {"confounded"}
    fitted = make_run("other")._replace(fit="isotonic")
    assert judge(fitted) == {"confounded"}
    found = check_treatment([make_run("ref"), fitted], reference="ref", treatment=["fit"])
    assert {f.status for f in found} == {"ok"}


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"device": "another", "world_size": 2},
        {"prompt__share": False},
        {"train__report_to": ["wandb"]},
        {"train__save_total_limit": 3},
        {"train__gradient_checkpointing": True},
    ],
)
def test_what_hardly_matters_is_a_note(changes: dict[str, Any]) -> None:
    assert judge(make_run("other", **changes)) == {"note", "ok"}
    seeds = [make_run("variant"), make_run("variant", train__seed=2, **changes)]
    assert [f.status for f in find_replicates(seeds)] == ["note"]


def test_a_quick_trial_is_marked() -> None:
    assert check_run(make_run("variant")) == []
    (found,) = check_run(make_run("variant", train__limit_rows=200))
    assert (found.check, found.status, found.variants) == ("trial_run", "warning", ["variant"])
    assert "at most 200 rows (train.limit_rows)" in found.message


def test_d2_a_variant_trained_on_other_data_is_invalid() -> None:
    runs = [make_run("ref"), make_run("other", data_fingerprint="g")]
    findings = check_data(runs, fingerprint="0123abcd")
    assert [(f.status, f.variants) for f in findings] == [("invalid", ["other"])]
    assert find_valid_variants(["ref", "other"], findings) == ["ref"]


def see(kept: list[int], whole: list[int], hashes: list[str]) -> StoredPredictions:
    n = len(kept)
    return StoredPredictions(
        [str(i) for i in range(n)], np.zeros((n, 1)), np.array(whole), np.array(kept), hashes
    )


def test_d1_cut_articles_and_equal_inputs_are_reported() -> None:
    seen = see([10, 5, 5], [10, 10, 20], ["h1", "h2", "h2"])
    findings = check_inputs(
        make_run("variant", tokens__min_article=4), seen, ["one", "two", "three"]
    )
    assert [f.status for f in findings] == ["warning", "invalid"]
    assert "50.0% of the article tokens; 2 of 3 rows are truncated" in findings[0].message
    assert "2 of 3 rows with different texts have identical inputs" in findings[1].message


def test_d1_what_training_would_refuse_is_invalid() -> None:
    seen = see([4, 4, 4], [100, 100, 4], ["a", "b", "c"])
    (found,) = check_inputs(make_run("variant", prompt__mode="include"), seen, ["1", "2", "3"])
    assert found.status == "invalid"
    assert found.message == (
        "variant: truncation leaves the median test row 4% of its article: a prompt of 240 tokens "
        "leaves 4 of "
        "256 tokens for articles of 100"
    )
    (found,) = check_inputs(make_run("variant"), seen, ["1", "2", "3"])  # below min_article
    assert "its budget leaves 4 of 256" in found.message
    # A short max_length without a prompt may be the treatment.
    (found,) = check_inputs(make_run("variant", tokens__min_article=4), seen, ["1", "2", "3"])
    assert found.status == "warning"


def test_d1_one_equal_input_in_a_hundred_is_a_warning() -> None:
    texts = [str(i) for i in range(200)]
    seen = see([4] * 200, [4] * 200, ["0", *texts[:1], *texts[2:]])
    (_, found) = check_inputs(make_run("variant"), seen, texts)
    assert found.status == "warning"


@pytest.mark.parametrize(
    ("view", "article", "kept", "expected"),
    [
        ((50, 1.0), "head", 100, (100, 50)),  # the oracle saw the first half, the student all
        ((100, 0.5), "head", 50, (50, 100)),
        ((50, 1.0), "head", 25, (50, 100)),
        ((50, 0.7), "head", 50, (70, 70)),  # the oracle's tail is beyond the student
        ((50, 0.7), "head_tail", 50, (100, 100)),
        ((50, 0.2), "head", 80, (60, 38)),  # the student's head reaches into the oracle's tail
    ],
)
def test_d4_the_overlap_of_what_oracle_and_student_saw(view, article, kept, expected) -> None:
    config = OracleViewConfig(max_words=view[0], head_share=view[1])
    texts = ["word " * 100]
    run = make_run("variant", tokens__article=article)
    (found,) = check_oracle_view(run, see([kept], [100], ["h"]), texts, view=config)
    by_student, by_oracle = expected
    assert f"got about {by_student}% of the text that the oracle got" in found.message
    assert f"about {by_oracle}% of the text that variant got" in found.message


def test_d4_without_a_word_on_the_oracle_whole_articles_are_silent() -> None:
    assert check_oracle_view(make_run("a"), see([9], [9], ["h"]), ["x"], view=None) == []


def test_d6_a_prompt_quotes_a_text_in_other_case_and_punctuation() -> None:
    words = [f"w{i}" for i in range(30)]
    prompt = "Task. " + ", ".join(words[5:17]).upper() + " The bank is calm now!"
    texts = [
        " ".join(words),  # 12 words in a row
        " ".join(words[5:16] + words[17:]),  # 11
        "the bank is calm now",  # short, but whole
        "bank is calm now",  # too short to tell
        "the bank is calm now and then and then and then again",
    ]
    assert find_quoted_rows(texts, prompt) == [0, 2]
    assert find_quoted_rows(texts, "") == []


def test_d8_reads_of_the_test_rows_are_counted() -> None:
    run = make_run("variant")
    statuses = [check_test_use(run, num_reads=n)[1].status for n in (1, 2, 9, 10)]
    assert statuses == ["ok", "note", "note", "warning"]


SCORES = np.array([[i % 11, 10 - i % 11] for i in range(44)], dtype=np.float32)


def test_d9_scores_that_hardly_vary_are_a_constant() -> None:
    middle = 5 + 0.1 * (SCORES - 5)
    assert check_collapsed_predictions("variant", SCORES, [(1, SCORES)]) == []
    assert (
        check_collapsed_predictions("variant", SCORES, [(1, middle)]) == []
    )  # a skill of 0.1 is no constant
    noise = 5 + 0.01 * np.roll(SCORES, 5, axis=0)
    (found,) = check_collapsed_predictions("variant", SCORES, [(1, noise), (2, noise)])
    assert (found.status, found.variants) == ("invalid", ["variant"])
    assert (
        "the predictions of variant collapsed (seed 1, 2): its predictions have 1%" in found.message
    )
    (found,) = check_collapsed_predictions("variant", SCORES, [(1, SCORES), (2, noise)])
    assert (found.status, "seed 2" in found.message) == ("warning", True)
    assert (
        check_collapsed_predictions("variant", np.full((9, 2), 3.0), [(1, np.zeros((9, 2)))]) == []
    )


def test_d9_one_class_for_all_rows_is_a_constant() -> None:
    labels = np.array([0, 1, 2, 0] * 25)
    always = np.tile([0.8, 0.1, 0.1], (100, 1))
    (found,) = check_collapsed_predictions("variant", labels, [(1, always)])
    assert "it predicts the same for 100.0% of the rows" in found.message
    assert check_collapsed_predictions("variant", labels, [(1, np.eye(3)[labels])]) == []
    assert check_collapsed_predictions("variant", np.zeros(100, dtype=int), [(1, always)]) == []


def test_d9_one_set_of_labels_for_all_rows_is_a_constant() -> None:
    labels = np.array([[True, False], [False, False], [True, True], [False, True]] * 25)
    (found,) = check_collapsed_predictions("variant", labels, [(1, np.full((100, 2), 0.1))])
    assert found.status == "invalid"
    assert check_collapsed_predictions("variant", labels, [(1, labels.astype(float))]) == []


def test_d1_equal_texts_may_have_equal_inputs() -> None:
    findings = check_inputs(make_run("variant"), see([4, 4], [4, 4], ["h", "h"]), ["one", "one"])
    assert [f.status for f in findings] == ["ok"]


def test_d1_a_waiver_and_its_reason_are_repeated() -> None:
    run = make_run("variant", tokens__waive="only titles matter", base_pretrained=False)
    messages = [f.message for f in check_run(run)]
    assert any("only titles matter" in m for m in messages)
    assert any("never pretrained" in m for m in messages)


def test_d5_evaluated_texts_in_training_are_invalid() -> None:
    known = ["one " * 30, "two " * 30]
    find = partial(find_contaminated_rows, known_texts=known, threshold=0.9)
    assert [f.status for f in check_overlap(find(["three"]), num_rows=1)] == ["ok"]
    copies = [known[0], f"{known[1]} .", "three"]  # one word for word, one with a full stop
    assert find(copies) == ([0], [1])
    found = check_overlap(find(copies), num_rows=3)
    assert [(f.status, f.message[:6]) for f in found] == [("invalid", "2 of 3")]
    assert find_valid_variants(["ref", "other"], found) == []
    others = [f"word{i} " * 30 for i in range(99)]
    found = check_overlap(find([f"{known[1]} .", *others]), num_rows=100)
    assert [(f.status, f.message[:8]) for f in found] == [("warning", "1 of 100")]


def test_d2_runs_of_one_variant_may_differ_in_the_seed_only() -> None:
    seeds = [make_run("variant", train__seed=1), make_run("variant", train__seed=2)]
    assert find_replicates(seeds) == []
    mixed = [make_run("variant"), make_run("variant", train__seed=2, base__model="qwen")]
    assert [(f.status, f.variants) for f in find_replicates(mixed)] == [("invalid", ["variant"])]


def test_d2_a_copy_of_a_run_is_no_further_seed() -> None:
    copied = make_run("variant")._replace(path="runs/copy")
    (found,) = find_replicates([make_run("variant"), copied, make_run("variant", train__seed=2)])
    assert (found.check, found.status, found.variants) == (
        "seed_replicates",
        "invalid",
        ["variant"],
    )
    assert "runs/copy has the same seed 1 as runs/variant" in found.message


def test_d2_another_rank_does_not_free_the_learning_rate() -> None:
    lora = {"base__tuning": "lora", "base__lora": {"rank": 8}}
    runs = [
        make_run("ref", **lora),
        make_run("other", base__tuning="lora", base__lora={"rank": 16}, train__learning_rate=1),
    ]
    assert "confounded" in {f.status for f in check_treatment(runs, reference="ref")}


def test_d9_a_variant_that_a_baseline_beats_is_warned_of() -> None:
    baselines = {"constant": 2.0, "tfidf": 1.0}
    found = check_baselines("mae", {"good": 0.9, "bad": 1.5}, baselines)
    assert [(f.status, f.variants) for f in found] == [("warning", ["bad"])]
    assert "tfidf" in found[0].message
    assert check_baselines("accuracy", {"a": 3.0}, baselines)[0].status == "ok"
    assert check_baselines("mae", {}, baselines) == [], "without a valid variant nothing is beaten"


def test_every_check_that_has_a_name_is_made() -> None:
    made: set[object] = set()
    for room in ("audit", "evaluation"):
        for path in (Path(llmft.__file__).parent / room).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            made |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert set(get_args(Check)) - made == set()


def test_d2_defaults_are_compared_by_what_they_stand_for() -> None:
    pooling = Pooling(how="mean", num_layers=2, normalises=True)
    mean = ResolvedDefaults(pooling=pooling, head_init="probe", learning_rate=1e-4)
    random = ResolvedDefaults(pooling=None, head_init="random", learning_rate=1e-4)
    unset = {"train__learning_rate": None}
    said = {"base__pooling": "mean", "head__init": "probe"}
    ref = make_run("ref", **unset, resolved=mean)

    def judge(other: RunFacts) -> set[str]:
        return {f.status for f in check_treatment([ref, other], reference="ref")}

    assert judge(make_run("other", **said)) <= {"ok", "note"}
    assert "confounded" in judge(make_run("other", **said, resolved=mean.replace(learning_rate=1)))
    for replicate, expected in ((mean, []), (random, ["invalid"])):
        again = make_run("ref", **unset, resolved=replicate, train__seed=2)
        assert [f.status for f in find_replicates([ref, again])] == expected
