"""The baseline `probe`: whether fine-tuning pays, in evaluations and comparisons."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import llmft
from llmft.config.recipe import TokensConfig
from llmft.config.suite import GateConfig
from llmft.evaluation import probe_baseline
from llmft.evaluation.gates import GateFacts, apply_gates
from llmft.evaluation.probe_baseline import explain_no_probe
from llmft.reports.sections import describe_probe
from llmft.results.evaluation import BaselineGain, Interval
from tests.training.test_initial_head import TRAIN, make_trained
from tests.training.test_probe import make_frame, make_recipe, write_prompt

CHEAP = {**TRAIN, "steps": None, "epochs": 3}


@pytest.fixture(scope="module", autouse=True)
def cheap_probe() -> Iterator[None]:
    """Undo that of all tests: the limit that users get."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_baseline, "LARGEST_COST", 0.2)
        yield


def make_suite(recipe: llmft.Recipe, **changes: Any) -> llmft.Suite:
    values = {
        "task": recipe.task, "metric": "mae", "margin": 0.0, "reference": "a",
        "variants": {"a": "runs/probe", "b": "runs/b"}, "output_dir": "reports",
    }  # fmt: skip
    return llmft.Suite(**{**values, **changes})


@pytest.mark.parametrize("head", ["regression", "multiclass", "multilabel"])
def test_an_evaluation_says_whether_fine_tuning_pays(
    head: str, workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = llmft.train(make_trained(lively_bert, head=head, train={**CHEAP, "epochs": 2.5}))
    with caplog.at_level(logging.INFO, logger="llmft"):
        result = llmft.evaluate(run)
    assert result.probe is not None
    gain = result.gains["probe"]
    difference = result.metrics[result.metric] - result.baselines["probe"].metrics[result.metric]
    sign = -1 if result.metric == "mae" else 1
    assert gain.gain == pytest.approx(sign * difference, abs=1e-6)
    assert gain.interval.low <= gain.gain <= gain.interval.high
    expected = "better" if gain.interval.low > 0 else "worse" if gain.interval.high < 0 else None
    assert gain.finding == (expected or "not told apart")
    assert "a linear head on the frozen" in caplog.text
    for name in ("report.html", "report.md"):
        assert "a linear head on the frozen" in Path("runs/probe/evaluation", name).read_text()
    again = llmft.evaluate(run)
    assert again.baselines == result.baselines
    assert again.probe == result.probe, "it is not fitted again"
    assert run.record.schema_version == 8


def test_it_is_left_out_where_it_costs_too_much(
    workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_trained(lively_bert, train={**TRAIN, "epochs": 1, "steps": None})
    with caplog.at_level(logging.INFO, logger="llmft"):
        llmft.check(recipe)
    assert "no baseline probe: its pass over the rows costs 42% of the training" in caplog.text
    caplog.clear()
    run = llmft.train(recipe)
    with caplog.at_level(logging.INFO, logger="llmft"):
        assert llmft.evaluate(run).probe is None
    assert "a suite with baselines: {probe: true} asks for it" in caplog.text
    suite = {"variants": {"a": run.path, "b": "runs/b"}}
    wanted = llmft.evaluate(run, suite=make_suite(recipe, **suite, baselines={"probe": True}))
    assert wanted.probe is not None
    assert "beats_probe" not in {gate.name for gate in wanted.gates}
    gates = {"beats_probe": {"deploy": 0.0, "review": -50.0}}
    gated = llmft.evaluate(run, suite=make_suite(recipe, **suite, gates=gates))
    [gate] = [gate for gate in gated.gates if gate.name == "beats_probe"]
    assert gated.probe is not None
    gain = gated.gains["probe"]
    assert (gate.value, gate.bound) == (gain.gain, gain.interval.low)
    assert gate.result == ("DEPLOY" if gain.interval.low >= 0 else "REVIEW")
    off = make_suite(recipe, **suite, baselines={"probe": False})
    assert llmft.evaluate(run, suite=off).probe is None


def test_a_comparison_has_that_of_the_reference(
    workspace: Path, lively_bert: Path, tiny_bert: Path
) -> None:
    recipe = make_trained(lively_bert, pooling="auto", train={**CHEAP, "learning_rate": 3e-3})
    llmft.train(recipe)
    llmft.train(recipe, overrides={"base.model": str(tiny_bert), "output_dir": "runs/b"})
    result = llmft.compare(make_suite(recipe))
    assert result.probe is not None
    assert result.probe.base == str(lively_bert)
    assert all("probe" in variant.gains for variant in result.variants.values())
    assert "probe" in result.baselines
    assert "probe" in result.to_frame().index
    alone = llmft.evaluate("runs/probe")
    assert alone.baselines["probe"].metrics["mae"] == pytest.approx(
        result.baselines["probe"].metrics["mae"], rel=1e-5
    )
    for name in ("report.html", "report.md"):
        assert "a linear head on the frozen" in Path("reports", name).read_text()


def test_it_has_the_prompt_and_the_rows_of_the_run(workspace: Path, tiny_qwen: Path) -> None:
    recipe = make_trained(tiny_qwen, "lora", prompt=write_prompt(), train={**CHEAP, "epochs": 4})
    run = llmft.train(recipe)
    Path("prompt.md").unlink()
    result = llmft.evaluate(run)
    assert result.probe is not None
    probe = llmft.evaluate(result.probe.run)
    assert probe.probe is None, "it is its own probe"
    assert probe.record.prompt_sha256 == run.record.prompt_sha256
    assert probe.record.data_fingerprint == run.record.data_fingerprint
    assert probe.metrics["mae"] == pytest.approx(result.baselines["probe"].metrics["mae"], rel=1e-5)
    rows = make_frame().tail(40)
    rows.to_csv("new.csv", index=False)
    of_file = llmft.evaluate(run, data="new.csv")
    assert of_file.probe is not None
    stored = pq.read_table(f"{of_file.probe.run}/predictions/data-new.parquet")
    assert stored["id"].to_pylist() == rows["id"].tolist()


def test_a_frozen_reference_is_the_probe_itself(workspace: Path, lively_bert: Path) -> None:
    recipe = make_trained(lively_bert, pooling="auto", train={**CHEAP, "learning_rate": 3e-3})
    llmft.train(recipe)
    llmft.train(make_recipe(lively_bert, output_dir="runs/b"))
    gates = {"beats_probe": {"deploy": 0.0}}
    result = llmft.compare(make_suite(recipe, reference="b", gates=gates))
    assert result.probe is not None
    assert result.probe.run == "runs/b"
    assert "probe" not in result.variants["b"].gains, "it is not compared with itself"
    [pair] = result.pairs
    assert result.variants["a"].gains["probe"].gain == pytest.approx(pair.gain)
    named = {name: [g.name for g in variant.gates] for name, variant in result.variants.items()}
    assert "beats_probe" in named["a"]
    assert "beats_probe" not in named["b"]


def test_a_probe_needs_the_base_of_the_run(
    workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(lively_bert, "base")
    run = llmft.train(make_trained(Path("base"), train=CHEAP))
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert llmft.evaluate(run).probe is None, "without being asked for"
    assert "the baseline probe is left out: the base base is not the one" in caplog.text
    suite = make_suite(make_trained(Path("base")), gates={"beats_probe": {"deploy": 0.0}})
    with pytest.raises(llmft.UserError, match="its weights changed"):
        llmft.evaluate(run, suite=suite)


@pytest.mark.parametrize("error", [llmft.UserError, torch.OutOfMemoryError])
def test_a_fit_that_fails_fails_only_what_asked_for_it(
    error: type[Exception], workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from llmft.training import probe

    recipe = make_trained(lively_bert, train=CHEAP)
    run = llmft.train(recipe)

    def fail(*_: object) -> None:
        raise error("no room")

    monkeypatch.setattr(probe, "train_probe", fail)
    assert llmft.evaluate(run).probe is None
    assert "the baseline probe is left out: no room" in caplog.text
    with pytest.raises(error):
        llmft.evaluate(run, suite=make_suite(recipe, baselines={"probe": True}))


def test_a_base_in_4_bit_is_never_cheap() -> None:
    recipe = llmft.Recipe(
        name="a", task="task.yaml", base={"model": "m", "tuning": "qlora"},
        head={"type": "regression"}, output_dir="runs/a",
    )  # fmt: skip
    num_rows = {"train": 80, "val": 10, "test": 10}
    reason = explain_no_probe(recipe, num_rows=num_rows, epochs=100)
    assert reason is not None
    assert "4 bit" in reason


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        ("better", "Fine-tuning pays: tuned (one seed) is better than the probe (gain"),
        ("worse", "Fine-tuning does not pay: tuned (one seed) is worse than the probe (gain"),
        ("not told apart", "Whether fine-tuning pays is not known: tuned (one seed) and the probe"),
    ],
)
def test_the_answer_is_one_sentence(
    finding: Any, sentence: str, evaluated: llmft.EvaluationResult
) -> None:
    assert evaluated.probe is not None
    gain = evaluated.gains["probe"].replace(finding=finding)
    result = evaluated.replace(gains={"probe": gain})
    assert describe_probe(result, {"tuned": result})[0].startswith(sentence)


@pytest.mark.parametrize(
    "change", [{"base": "another"}, {"prompt_sha256": "another"}, {"tokens": {"max_length": 8}}]
)
def test_where_more_differs_fine_tuning_is_not_the_reason(
    change: dict[str, Any], evaluated: llmft.EvaluationResult
) -> None:
    assert evaluated.probe is not None
    if "tokens" in change:
        change = {"tokens": TokensConfig(**change["tokens"])}
    result = evaluated.replace(probe=evaluated.probe.replace(**change))
    first = describe_probe(result, {"tuned": result})[0]
    assert first.startswith("tuned (one seed)")
    assert "whose base, prompt or token limits are others" in first
    edge = evaluated.probe.head_fit.replace(is_at_edge=True, num_computed=3)
    result = evaluated.replace(probe=evaluated.probe.replace(head_fit=edge))
    assert (
        "kept from before. Its penalty is at the edge"
        in describe_probe(result, {"tuned": result})[-1]
    )


@pytest.fixture(scope="module")
def evaluated(
    lively_bert: Path, cheap_probe: None, tmp_path_factory: pytest.TempPathFactory
) -> llmft.EvaluationResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluated"))
        return llmft.evaluate(llmft.train(make_trained(lively_bert, train=CHEAP)))


def test_a_gain_that_is_not_told_apart_is_no_evidence() -> None:
    gate = GateConfig(deploy=0.0)
    gain = BaselineGain(gain=0.5, interval=Interval(0.4, 0.6), finding="not told apart")
    facts = GateFacts(
        metric="mae", metrics={}, intervals={}, parts={}, splits={}, histories=[],
        gains={"probe": gain},
    )  # fmt: skip
    [result] = apply_gates({"beats_probe": gate}, facts)
    assert result.result == "REVIEW"
    assert "not told apart" in result.reason
    [result] = apply_gates({"beats_probe": gate}, facts._replace(gains={}))
    assert result.result == "REVIEW"
    assert "is not defined on these rows" in result.reason
    worse = facts._replace(gains={"probe": gain.replace(gain=-0.5, interval=Interval(-0.6, -0.4))})
    [result] = apply_gates({"beats_probe": GateConfig(deploy=0.0, review=-0.2)}, worse)
    assert result.result == "FAIL"
    better = facts._replace(gains={"probe": gain.replace(finding="better")})
    assert apply_gates({"beats_probe": gate}, better)[0].result == "DEPLOY"
    assert apply_gates({"beats_probe": GateConfig(deploy=0.5)}, better)[0].result == "REVIEW"


def test_a_base_that_is_gone_is_no_reason_to_fail(
    workspace: Path, lively_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(lively_bert, "base")
    recipe = make_trained(Path("base"), train=CHEAP)
    run = llmft.train(recipe)
    shutil.rmtree("base")
    assert llmft.evaluate(run).probe is None
    assert "the baseline probe is left out: base.model: base" in caplog.text
    with pytest.raises(llmft.UserError, match=r"base\.model: base"):
        llmft.evaluate(run, suite=make_suite(recipe, baselines={"probe": True}))


def test_an_old_baseline_is_fitted_again(workspace: Path, lively_bert: Path) -> None:
    first = llmft.train(make_trained(lively_bert, train=CHEAP))
    before = llmft.evaluate(first)
    shutil.copytree("runs/probe/evaluation/baselines/probe", "kept")
    shutil.rmtree("runs/probe")
    recipe = make_trained(lively_bert, train={**CHEAP, "limit_rows": 60, "epochs": 6})
    run = llmft.train(recipe)
    shutil.copytree("kept", "runs/probe/evaluation/baselines/probe")
    after = llmft.evaluate(run)
    assert after.probe is not None
    assert before.probe is not None
    assert after.probe.head_fit != before.probe.head_fit
    assert llmft.evaluate(after.probe.run).record.recipe.train.limit_rows == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": "r", "probe": "s"}}, "'probe' is the name of a baseline"),
        (
            {"gates": {"beats_probe": {"deploy": 0}}, "baselines": {"probe": False}},
            "gates.beats_probe: needs the baseline",
        ),
        ({"baselines": {"probe": "sometimes"}}, "baselines.probe"),
    ],
)
def test_faults_in_a_suite_are_named(
    changes: dict[str, Any], message: str, workspace: Path, lively_bert: Path
) -> None:
    with pytest.raises(llmft.UserError) as caught:
        make_suite(make_recipe(lively_bert), **changes)
    assert message in str(caught.value)
