"""What `llmft check` tells before anything is trained."""

import json
from pathlib import Path

import pytest

from llmft.cli import main


@pytest.fixture
def recipe(workspace: Path, write_scores_task, write_recipe, tiny_bert: Path) -> Path:
    write_scores_task()
    assert main(["prepare", "task.yaml"]) == 0
    return write_recipe(tiny_bert, prompt="task : {title} {content} report .")


def check(recipe: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["check", str(recipe), *arguments]) == 0
    return capsys.readouterr().out


def test_it_tells_base_data_labels_steps_and_memory(recipe: Path, capsys, tiny_bert: Path) -> None:
    said = check(recipe, capsys)
    assert f"base: folder {tiny_bert}" in said
    assert "60 of 60 rows used" in said
    assert "labels train: risk mean" in said
    assert "training: 12 steps on 1 device (48 rows in 6 batches of up to 8, 2 epochs)" in said
    assert "memory: about" in said
    assert said.endswith("ok\n")


@pytest.mark.parametrize("row", ["row7", "0"])
def test_it_shows_what_the_tokenizer_makes_of_a_row(recipe: Path, capsys, row: str) -> None:
    said = check(recipe, capsys, "--show", row, "--set", "tokens.max_length=24")
    assert "article tokens kept" in said
    shown = said[said.index("[special 1]") :]
    for piece in ("[special 1][CLS]", "[prompt 2]task :", "[article", "[cut", "[tail 2]report ."):
        assert piece in shown
    assert shown.index("[prompt") < shown.index("[article") < shown.index("[cut")
    assert shown.index("[cut") < shown.index("[tail 2]")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("[query,nope]", "base.lora.target_modules: 'nope' is not a linear layer of"),
        ("[qeury]", "outside its head. Did you mean `query`? Allowed: query, key, value"),
    ],
)
def test_layers_for_adapters_that_the_base_lacks_are_an_error(
    recipe: Path, capsys, modules: str, message: str
) -> None:
    options = ["--set", "base.tuning=lora", "--set", f"base.lora.target_modules={modules}"]
    assert main(["check", str(recipe), *options]) == 2
    assert message in capsys.readouterr().err


def test_colours_only_on_a_terminal_that_wants_them(
    recipe: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in check(recipe, capsys, "--show", "row7")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[34mtask :\x1b[0m" in check(recipe, capsys, "--show", "row7")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in check(recipe, capsys, "--show", "row7")


def test_text_that_moves_the_cursor_is_shown_as_text(recipe: Path, capsys) -> None:
    prompt = Path("variant.md")
    prompt.write_text(prompt.read_text().replace("report", "re\x1b[2Jport"))
    assert "\x1b" not in check(recipe, capsys, "--show", "row7")


def test_a_row_that_is_not_there_is_an_error(recipe: Path, capsys) -> None:
    capsys.readouterr()
    assert main(["check", str(recipe), "--show", "row999"]) == 2
    assert "no row has the id 'row999'" in capsys.readouterr().err


def test_it_says_whether_a_base_of_the_hub_is_in_the_cache(
    recipe: Path, capsys, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        huggingface_hub.file_download, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False
    )
    override = ["--no-data", "--set", "base.model=owner/tiny"]
    said = check(recipe, capsys, *override)
    assert "owner/tiny is not on this machine" in said
    assert "hf download owner/tiny --revision main" in said
    repository = tmp_path / "hub" / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(tiny_bert)
    said = check(recipe, capsys, *override)
    assert "commit 0123456789ab" in said
    assert "remain for the article" in said


@pytest.mark.parametrize("name", ["no/such/folder", "./nope", "two words"])
def test_a_base_that_can_be_nothing_is_an_error_even_without_data(
    recipe: Path, capsys, name: str
) -> None:
    capsys.readouterr()
    assert main(["check", str(recipe), "--no-data", "--set", f"base.model={name}"]) == 2
    said = capsys.readouterr().err
    assert "Looked for a folder of that name, in the cache" in said


def test_trackers_and_weights_are_looked_at_before_training(recipe: Path, capsys) -> None:
    for override, complaint in {
        "train.report_to=[mlflow]": "pip install 'llmft[mlflow]'",
        "head.loss={row_weights: title}": "expected a number of at least 0",
    }.items():
        override_task = ["--set", override]
        capsys.readouterr()
        assert main(["check", str(recipe), *override_task]) == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "share", "batches"),
    [
        ("tiny_qwen", "true", "24 batches of up to 2"),  # of 42 tokens, without the prompt
        ("tiny_qwen", "false", "48 batches of up to 1"),
        ("tiny_bert", "true", "48 batches of up to 1"),  # an encoder reads it in every row
    ],
)
def test_r8_it_counts_the_batches_that_training_then_takes(
    recipe: Path, capsys, write_recipe, request: pytest.FixtureRequest,
    base: str, share: str, batches: str,
) -> None:  # fmt: skip
    bounded = write_recipe(
        request.getfixturevalue(base),
        prompt="bank rate " * 20 + "{title} {content}",
        train=", max_tokens_per_batch: 96",
    )
    overrides = ["--set", "tokens.max_length=96", "--set", f"prompt.share={share}"]
    said = check(bounded, capsys, *overrides)
    assert f"48 rows in {batches}, 2 epochs" in said
    assert main(["train", str(bounded), *overrides]) == 0
    metadata = json.loads(Path("runs/variant/training_metadata.json").read_text())
    assert f"training: {metadata['num_steps']} steps" in said
    assert metadata["global_batch_size"] == int(batches[-1])


def test_r8_a_row_that_fits_into_no_batch_is_refused(recipe: Path, capsys) -> None:
    for verb in ("check", "train"):
        capsys.readouterr()
        assert main([verb, str(recipe), "--set", "train.max_tokens_per_batch=20"]) == 2
        assert "train.max_tokens_per_batch: found 20, but the longest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tuning", "layouts"),
    [
        ("lora", ["one GPU", "DDP, 8 GPUs", "ZeRO-2, 8 GPUs", "ZeRO-3, 8 GPUs",
                  "ZeRO-3 with offload, 8 GPUs", "FSDP2, 8 GPUs"]),
        ("qlora", ["one GPU", "DDP, 8 GPUs", "ZeRO-2, 8 GPUs"]),
    ],
)  # fmt: skip
def test_r2_it_tells_which_ways_to_share_a_training_fit(
    recipe: Path, capsys, write_recipe, tiny_qwen: Path, tuning: str, layouts: list[str]
) -> None:
    recipe = write_recipe(tiny_qwen, tuning=tuning, prompt="task : {title} {content} report .")
    said = check(recipe, capsys, "--gpu-memory", "24GiB")
    assert "memory per GPU, of 24.0 GiB" in said
    assert "never compared on a GPU" in said
    lines = [line.split("  ") for line in said.splitlines() if line.endswith(" fits")]
    assert [line[1].strip() for line in lines] == layouts
    said = check(recipe, capsys, "--gpu-memory", "900MB")
    assert said.count("does not fit") == len(layouts)
    assert "memory per GPU, of 0.8 GiB" in said
    assert check(recipe, capsys, "--gpu-memory", "1024 MiB").count("may fit") == len(layouts)


@pytest.mark.parametrize("size", ["24", "24gib", "0GiB", "-1GiB", "manyGiB", "1e3GiB"])
def test_a_size_that_is_none_is_an_error(
    recipe: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(recipe), f"--gpu-memory={size}"])
    assert stopped.value.code == 2
    assert f"{size!r} is not a size above 0, such as 24GiB or 80GB" in capsys.readouterr().err


def test_memory_a_gpu_needs_the_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--no-data", "--gpu-memory", "24GiB"]) == 2
    assert "leave out --no-data" in capsys.readouterr().err
