"""Fitting: golden losses, resume, the best epoch, and a loss that is not finite."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from llmft.config.head import HeadConfig
from llmft.config.recipe import BaseConfig, LoraConfig, TrainConfig
from llmft.data.batches import BatchPlan, Collator, Examples
from llmft.data.encoding import EncodedRow
from llmft.errors import UserError
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.training.checkpoints import find_last_checkpoint
from llmft.training.losses import Loss
from llmft.training.trainer import Measure, TrainingResult, make_arguments, run_trainer

SCORES = LabelSpace("regression", ["risk", "calm"])
GOLDEN = [2.128, 2.04, 1.632, 1.337, 1.079]
TRAIN = TrainConfig(epochs=5, batch_size=8, learning_rate=1e-2, precision="float32", seed=1)


def make_examples(num_rows: int, *, seed: int) -> Examples:
    """Rows whose score is how often token 5 stands in them."""
    generator = torch.Generator().manual_seed(seed)
    encoded, targets = [], []
    for i in range(num_rows):
        length = 6 + i % 7
        ids = torch.randint(6, 50, (length,), generator=generator)
        ids[: i % 5] = 5
        encoded.append(EncodedRow([], ids.tolist(), length, length))
        targets.append([i % 5 - 2.0, 2.0 - i % 5])
    return Examples(encoded, torch.tensor(targets), ids=[f"row{i}" for i in range(num_rows)])


def measure_mae(val: Examples) -> Measure:
    labels = np.stack([val[i].target.numpy() for i in range(len(val))])
    return lambda outputs: {"mae": float(np.abs(outputs - labels).mean())}


COLLATE = Collator(pad_token_id=0, targets=make_examples(10, seed=2).targets)


@pytest.fixture
def fit(
    tiny_bert: Path, tiny_qwen: Path, tmp_path: Path
) -> Callable[..., tuple[nn.Module, TrainingResult]]:
    def run(
        *, config: TrainConfig = TRAIN, run_dir: str = "run", measure: Measure | None = None,
        lora: bool = False, train: Examples | None = None, metric: str = "mae",
    ) -> tuple[nn.Module, TrainingResult]:  # fmt: skip
        base = BaseConfig(model=str(tiny_bert))
        if lora:
            base = BaseConfig(
                model=str(tiny_qwen), tuning="lora", lora=LoraConfig(rank=4, dropout=0.1)
            )
        torch.manual_seed(config.seed)
        val = make_examples(10, seed=2)
        model = load_model(base, labels=SCORES, pad_token_id=0, seed=config.seed).model
        train = train or make_examples(16, seed=1)
        plan = BatchPlan(train.lengths, config)
        folder = tmp_path / run_dir
        result = run_trainer(
            model,
            train,
            val,
            collator=COLLATE,
            loss=Loss(HeadConfig(type="regression")),
            measure=measure or measure_mae(val),
            config=config,
            plan=plan,
            arguments=make_arguments(config, plan=plan, metric=metric, run_dir=folder),
            resume_from=find_last_checkpoint(folder / "checkpoints"),
        )
        return model, result

    return run


def test_golden_losses_of_five_epochs(fit) -> None:
    _, result = fit()
    losses = [round(entry.train_loss, 3) for entry in result.history]
    assert losses == pytest.approx(GOLDEN, abs=5e-3)
    assert result.num_steps == 10
    assert result.num_epochs == 5


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_r5_resumed_run_ends_bit_identical_to_the_unbroken_one(fit, lora: bool) -> None:
    whole, expected = fit(run_dir="whole", lora=lora)
    calls = 0
    measure = measure_mae(make_examples(10, seed=2))

    def interrupt_at_third(outputs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return measure(outputs)

    with pytest.raises(KeyboardInterrupt):
        fit(run_dir="broken", measure=interrupt_at_third, lora=lora)
    broken, resumed = fit(run_dir="broken", lora=lora)
    assert resumed.resumed_from_step == 4
    weights, other = whole.state_dict(), broken.state_dict()
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    untimed = [[e.model_dump(exclude={"seconds"}) for e in r.history]
               for r in (expected, resumed)]  # fmt: skip
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("bounds", [{"batch_size": 3}, {"max_tokens_per_batch": 24}])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_r5_r8_a_run_killed_in_the_middle_of_an_epoch_ends_bit_identical(
    fit, bounds: dict[str, int], accumulated: int
) -> None:
    config = TrainConfig(
        epochs=3, eval_steps=1, learning_rate=1e-2, precision="float32", seed=1,
        gradient_accumulation_steps=accumulated, **bounds,
    )  # fmt: skip
    seen: dict[str, list[list[list[int]]]] = {"whole": [], "broken": []}

    def record(run_dir: str, *, stop_after: int | None = None) -> tuple[nn.Module, TrainingResult]:
        train = make_examples(16, seed=1)
        train_ids = [train[i].encoded.own_ids for i in range(len(train))]
        collate, batches = Collator.__call__, seen[run_dir]
        measure, num_calls = measure_mae(make_examples(10, seed=2)), 0

        def stop(outputs):
            nonlocal num_calls
            num_calls += 1
            if num_calls == stop_after:
                raise KeyboardInterrupt
            return measure(outputs)

        def remember(self, examples):
            ids = [e.encoded.own_ids for e in examples]
            batches.extend([ids] if ids[0] in train_ids else [])
            return collate(self, examples)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Collator, "__call__", remember)
            return fit(config=config, run_dir=run_dir, train=train, measure=stop)

    whole, expected = record("whole")
    steps_per_epoch = expected.num_steps // 3
    stop_after = steps_per_epoch + 2  # the second epoch has begun
    assert steps_per_epoch > 2
    with pytest.raises(KeyboardInterrupt):
        record("broken", stop_after=stop_after)
    seen["broken"].clear()
    broken, resumed = record("broken")
    assert resumed.resumed_from_step == stop_after - 1
    assert resumed.num_steps == expected.num_steps
    assert seen["broken"] == seen["whole"][-len(seen["broken"]) :], "the same rows follow"
    weights, other = whole.state_dict(), broken.state_dict()
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_r8_every_epoch_takes_every_row_once(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    train = make_examples(16, seed=1)
    get = Examples.__getitem__

    def remember(self: Examples, index: int):
        taken.extend([index] if self is train else [])
        return get(self, index)

    monkeypatch.setattr(Examples, "__getitem__", remember)
    config = TrainConfig(
        epochs=3, max_tokens_per_batch=30, learning_rate=1e-2, precision="float32", seed=1
    )
    _, result = fit(config=config, train=train)
    epochs = [taken[start : start + 16] for start in (0, 16, 32)]
    assert len(taken) == 48
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "in another order"
    plan = BatchPlan(train.lengths, config)
    assert result.num_steps == 3 * len(plan)


def test_d11_rows_are_validated_by_length_and_measured_in_their_order(fit) -> None:
    labels = []
    val = make_examples(10, seed=2)
    model, _ = fit(measure=lambda outputs: {"mae": float(labels.append(outputs.copy()) or 0)})
    assert sorted(val.lengths, reverse=True) != val.lengths.tolist()
    batch = COLLATE([val[i] for i in range(10)])
    with torch.inference_mode():
        logits = model.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    assert torch.allclose(logits, torch.from_numpy(labels[0]), atol=1e-5)


def test_d2_the_model_ends_with_the_weights_of_the_best_epoch(fit) -> None:
    seen: list[torch.Tensor] = []
    scores = iter([0.9, 0.1, 0.8, 0.7, 0.6])

    def measure(outputs):
        seen.append(torch.from_numpy(outputs.copy()))
        return {"mae": next(scores)}

    model, result = fit(measure=measure)
    assert (result.best.epoch, result.best_metric) == (2.0, 0.1)
    val = make_examples(10, seed=2)
    batch = COLLATE([val[i] for i in range(10)])
    with torch.inference_mode():
        logits = model.eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    assert torch.allclose(logits, seen[1], atol=1e-5)


def test_early_stopping_ends_the_training(fit) -> None:
    scores = iter([0.5, 0.6, 0.7, 0.8, 0.9])
    config = TRAIN.model_copy(update={"early_stopping_patience": 2})
    _, result = fit(config=config, measure=lambda outputs: {"mae": next(scores)})
    assert [e.epoch for e in result.history] == [1.0, 2.0, 3.0]


def test_r5_early_stopping_goes_on_counting_after_a_resume(fit) -> None:
    config = TRAIN.model_copy(update={"early_stopping_patience": 2})

    def make_measure(values: list[float]) -> Measure:
        scores = iter(values)

        def measure(outputs):
            value = next(scores)
            if value < 0:
                raise KeyboardInterrupt
            return {"mae": value}

        return measure

    _, whole = fit(config=config, run_dir="whole", measure=make_measure([0.5, 0.6, 0.7, 0.4, 0.9]))
    with pytest.raises(KeyboardInterrupt):
        fit(config=config, run_dir="broken", measure=make_measure([0.5, 0.6, -1]))
    _, resumed = fit(config=config, run_dir="broken", measure=make_measure([0.7, 0.4, 0.9]))
    assert [e.epoch for e in whole.history] == [e.epoch for e in resumed.history] == [1, 2, 3]
    assert whole.best.epoch == resumed.best.epoch == 1.0


@pytest.mark.parametrize("damage", ["no state", "half a state", "empty"])
def test_r5_a_half_written_checkpoint_is_passed_over(fit, tmp_path: Path, damage: str) -> None:
    _, whole = fit(run_dir="whole")
    calls = iter([0.5, 0.4])
    with pytest.raises(StopIteration):
        fit(run_dir="broken", measure=lambda outputs: {"mae": next(calls)})
    checkpoints = tmp_path / "broken" / "checkpoints"
    newest = checkpoints / "checkpoint-6"
    if damage == "empty":
        newest.mkdir()
    else:
        shutil.copytree(checkpoints / "checkpoint-4", newest)
        text = (newest / "trainer_state.json").read_text()
        (newest / "trainer_state.json").write_text(text[: len(text) // 2])
        if damage == "no state":
            (newest / "trainer_state.json").unlink()
    _, resumed = fit(run_dir="broken")
    assert resumed.resumed_from_step == 4
    assert resumed.num_steps == whole.num_steps


def test_gradient_accumulation_equals_one_large_batch(fit) -> None:
    without_dropout = {"epochs": 1.0, "seed": 4}
    large = TRAIN.model_copy(update={**without_dropout, "batch_size": 8})
    small = TRAIN.model_copy(
        update={**without_dropout, "batch_size": 4, "gradient_accumulation_steps": 2}
    )
    results = [fit(config=c, run_dir=f"run{i}")[1] for i, c in enumerate((large, small))]
    assert results[0].num_steps == results[1].num_steps == 2
    losses = [r.history[0].train_loss for r in results]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # equal but for the dropout masks


def test_a_nan_loss_stops_with_step_rows_and_advice(fit) -> None:
    train = make_examples(16, seed=1)
    train._targets[3, 0] = float("nan")
    with pytest.raises(UserError) as caught:
        fit(train=train)
    message = str(caught.value)
    assert "the loss is nan at step" in message
    assert "row3" in message
    assert "train.learning_rate" in message


def test_tensorboard_gets_losses_and_metrics(fit, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit()
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "eval/mae", "eval/loss", "train/learning_rate"} <= set(
        events.Tags()["scalars"]
    )


def test_gradient_checkpointing_changes_nothing_but_the_memory(fit) -> None:
    for lora in (False, True):
        plain, checked = (
            fit(
                config=TRAIN.model_copy(update={"steps": 2, "gradient_checkpointing": on}),
                run_dir=f"run-{lora}-{on}",
                lora=lora,
            )[1]
            for on in (False, True)
        )
        losses = [[e.train_loss for e in result.history] for result in (plain, checked)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_validation_and_checkpoints_every_so_many_steps(fit, tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"steps": 5, "eval_steps": 2, "save_total_limit": 2})
    _, result = fit(config=config)
    assert [entry.step for entry in result.history] == [2, 4, 5]
    assert result.num_steps == 5
    assert 2 <= len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 3


def test_steps_take_the_place_of_epochs_and_the_last_one_is_validated(fit) -> None:
    _, result = fit(config=TRAIN.model_copy(update={"steps": 3}))
    assert [entry.step for entry in result.history] == [2, 3]


@pytest.mark.parametrize("name", get_args(TrainConfig.model_fields["lr_scheduler"].annotation))
def test_every_scheduler_runs(fit, name: str) -> None:
    config = TRAIN.model_copy(update={"lr_scheduler": name, "epochs": 2.0, "warmup_steps": 1})
    _, result = fit(config=config)
    rates = [entry.learning_rate for entry in result.history]
    assert all(0 <= rate <= TRAIN.learning_rate for rate in rates)
    assert rates[0] > 0
    if name in ("linear", "cosine", "polynomial"):
        assert rates[1] < rates[0]


def test_the_loss_can_choose_the_checkpoint(fit) -> None:
    _, result = fit(metric="loss")
    assert result.best_metric == min(entry.val["loss"] for entry in result.history)


def test_row_weights_reach_the_loss_and_not_the_model(fit) -> None:
    train = make_examples(16, seed=1)
    train.weights = torch.tensor([0.0] * 15 + [16.0])
    _, weighed = fit(train=train, run_dir="weighed")
    _, plain = fit(run_dir="plain")
    assert weighed.history[0].train_loss != pytest.approx(plain.history[0].train_loss, rel=0.1)


@pytest.mark.launched
def test_a_short_last_interval_has_a_loss_too(fit) -> None:
    config = TRAIN.model_copy(update={"steps": 403, "eval_steps": 200, "learning_rate": 1e-4})
    _, result = fit(config=config)
    assert [entry.step for entry in result.history] == [200, 400, 403]
    assert all(np.isfinite(entry.train_loss) for entry in result.history)


def test_r5_a_run_that_had_stopped_early_is_not_trained_on_after_a_resume(
    fit, tmp_path: Path
) -> None:
    config = TRAIN.model_copy(update={"early_stopping_patience": 2, "save_total_limit": 2})
    scores = iter([0.5, 0.6, 0.7, 0.1, 0.1])
    _, whole = fit(config=config, measure=lambda outputs: {"mae": next(scores)})
    _, again = fit(config=config, measure=lambda outputs: {"mae": next(scores)})
    assert [e.epoch for e in again.history] == [e.epoch for e in whole.history] == [1, 2, 3]
    assert again.best.epoch == whole.best.epoch == 1.0


def test_gradient_checkpointing_keeps_less_for_the_backward_pass(tiny_bert: Path, fit) -> None:
    kept = {}
    for on in (False, True):
        num_values = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal num_values
            num_values += tensor.numel()
            return tensor

        config = TRAIN.model_copy(update={"steps": 1, "gradient_checkpointing": on})
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            fit(config=config, run_dir=f"run-{on}")
        kept[on] = num_values
    assert kept[True] < 0.7 * kept[False]
