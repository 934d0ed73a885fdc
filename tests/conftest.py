"""Tiny bases made on the spot, and a small task to learn; nothing is downloaded."""

import gc
import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_socket
from filelock import FileLock
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; two threads would only wait
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Chance finds faults, but not in a run that somebody else waits for.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("exploring", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REPORT_PACKAGES = {"matplotlib", "docx"}
MAX_CPU_S = 12
"""CPU seconds that a test may take, its fixtures aside, so that `make test` stays fast."""

WORDS = (
    "bank market rate crisis calm growth loan debt bond stock profit loss policy tax trade oil "
    "gas union strike factory export import price wage fund index budget deficit surplus minister "
    "report river bridge school doctor train harbour weather winter summer music film museum"
).split()


def make_text(generator: random.Random, *, mood: str, num_words: int = 30) -> str:
    """Return a text in which the mood word stands more often the higher the score is."""
    return " ".join(generator.choice(WORDS) for _ in range(num_words)) + f" {mood}" * 3


def make_tiny_bert(folder: Path, **config: Any) -> Path:
    """Write a two-layer BERT base without a head, with a word tokenizer, as a local folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    moods = [f"mood{i}" for i in range(11)]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *moods, "task", ":", "."])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=128,
            **config,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT base as it would be made for training from the start."""
    return make_tiny_bert(tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="session")
def lively_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose texts differ at once, so that a few steps do not leave it a constant."""
    folder = tmp_path_factory.mktemp("bases") / "lively-bert"
    return make_tiny_bert(folder, initializer_range=0.35)


def make_byte_tokenizer() -> Any:
    """Return a tokenizer like that of Qwen2, with 500 tokens, that names no pad token (H3)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    generator = random.Random(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [make_text(generator, mood=f"mood{i % 11}") for i in range(50)],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    return tokenizer


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen2 base that names no pad token (H3), as a local folder."""
    import torch
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            initializer_range=0.2,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bases") / "tiny-qwen"
    model.save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def make_spec(base: Any, space: Any, **changes: Any) -> Any:
    """Return the card of a model with this base and head, trained on nothing."""
    from llmft import __version__
    from llmft.config.recipe import TokensConfig
    from llmft.config.task import ClassConfig, FieldsConfig, MultilabelConfig, ScoresConfig
    from llmft.models.bases import hash_base
    from llmft.models.saved import ModelSpec

    labels: dict[str, Any] = {
        "regression": ScoresConfig.model_construct(
            type="scores", from_="scores", dimensions=space.names
        ),
        "multilabel": MultilabelConfig.model_construct(type="multilabel", from_=space.names),
    }
    made = {
        "llmft_version": __version__,
        "name": "variant",
        "task": "risk",
        "base": base,
        "base_hash": hash_base(base),
        "base_pretrained": False,
        "head": space.head,
        "label_names": space.names,
        "labels": labels.get(space.head, ClassConfig.model_construct(type="class", from_="mood")),
        "prompt": None,
        "fields": FieldsConfig(),
        "tokens": TokensConfig(max_length=96),
        "precision": "float32",
        "data_fingerprint": "f",
        "num_parameters": 1,
        "num_trainable": 1,
    }
    return ModelSpec(**{**made, **changes})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; paths in YAML files are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_task_writer(folder: Path) -> Callable[..., Path]:
    """Return a function that writes a task with two dimensions that depend on words of the text."""

    def write(*, num_rows: int = 60, name: str = "risk", extra: str = "") -> Path:
        generator = random.Random(1)
        rows = [
            {
                "id": f"row{i}",
                "title": generator.choice(WORDS),
                "content": make_text(generator, mood=f"mood{i % 11}"),
                "scores": {"risk": i % 11, "calm": 10 - i % 11},
            }
            for i in range(num_rows)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        path = folder / "task.yaml"
        path.write_text(
            f"name: {name}\nsources: [{{path: rows.jsonl}}]\n"
            "fields: {id: id, text: [title, content]}\n"
            "labels: {type: scores, from: scores, dimensions: [risk, calm]}\n"
            f"output: prepared\n{extra}"
        )
        return path

    return write


def make_recipe_writer(folder: Path) -> Callable[..., Path]:
    """Return a function that writes a recipe for `task.yaml`: two short epochs in float32."""

    def write(
        base: Path | str, *, name: str = "variant", tuning: str = "full", head: str = "regression",
        prompt: str | None = None, extra: str = "", train: str = "",
    ) -> Path:  # fmt: skip
        mode = "{mode: exclude}"
        if prompt is not None:
            (folder / f"{name}.md").write_text(prompt)
            mode = f"{{mode: include, file: {name}.md}}"
        path = folder / f"{name}.yaml"
        path.write_text(
            f"name: {name}\ntask: task.yaml\nbase: {{model: {base}, tuning: {tuning}}}\n"
            f"head: {{type: {head}}}\nprompt: {mode}\n"
            "tokens: {max_length: 96, min_article: 16}\n"
            "train: {epochs: 2, batch_size: 8, learning_rate: 1e-3, precision: float32"
            f"{train}}}\noutput_dir: runs/{name}\n{extra}"
        )
        return path

    return write


@pytest.fixture
def write_scores_task(workspace: Path) -> Callable[..., Path]:
    """Write the task into the working folder."""
    return make_task_writer(workspace)


@pytest.fixture
def write_recipe(workspace: Path) -> Callable[..., Path]:
    """Write recipes into the working folder."""
    return make_recipe_writer(workspace)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, lively_bert: Path, tiny_qwen: Path
) -> Path:
    """Three trained variants and their comparison; take `copy` to change anything.

    The first worker that needs them trains them for all.
    """
    if worker_id == "master":
        folder = tmp_path_factory.mktemp("trained")
        _train_variants(folder, lively_bert, tiny_qwen)
        return folder
    folder = tmp_path_factory.getbasetemp().parent / "trained"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            building = tmp_path_factory.mktemp("building")
            _train_variants(building, lively_bert, tiny_qwen)
            building.rename(folder)
    return folder


def _train_variants(folder: Path, lively_bert: Path, tiny_qwen: Path) -> None:
    from llmft.cli import main

    with pytest.MonkeyPatch.context() as patch:
        for package in REPORT_PACKAGES:
            patch.setitem(sys.modules, package, None)
        patch.chdir(folder)
        make_task_writer(folder)()
        write = make_recipe_writer(folder)
        write(lively_bert, name="bert")
        write(tiny_qwen, name="plain", tuning="lora")
        write(tiny_qwen, name="prompted", tuning="lora", prompt='task : {text} . {"risk": 1}')
        (folder / "suite.yaml").write_text(
            "task: task.yaml\nvariants:\n"
            "  bert: {recipe: bert.yaml, seeds: [1]}\n"
            "  plain: {recipe: plain.yaml, seeds: [1, 2]}\n"
            "  prompted: {recipe: prompted.yaml, seeds: [1]}\n"
            "reference: plain\nmetric: mae\nmargin: 0.1\nedge_cases: cases.jsonl\n"
            "output_dir: reports/risk\n"
        )
        (folder / "cases.jsonl").write_text(
            '{"id": "c1", "text": "market mood9", "expect": {"risk": {"min": -99}}}\n'
        )
        assert main(["compare", "suite.yaml", "--train"]) == 0


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the trained workspace, as the working folder."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that takes too long, unless it is marked as one that does."""
    started = time.process_time()
    yield
    used = time.process_time() - started
    may_take_long = any(map(item.get_closest_marker, ("launched", "slow", "real", "gpu")))
    if used > MAX_CPU_S and not may_take_long and "HYPOTHESIS_PROFILE" not in os.environ:
        pytest.fail(
            f"it took {used:.0f} s of CPU time, above {MAX_CPU_S}: make it smaller, or mark it as "
            "launched",
            pytrace=False,
        )


@pytest.fixture(scope="module", autouse=True)
def _spare_garbage_collection() -> None:
    """Keep what is loaded out of garbage collection, which every training asks for twice."""
    gc.collect()  # garbage of the module before
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_measurements() -> Iterator[None]:
    """Time each variant less often; tests that are about latencies have a fixture of this name."""
    from llmft.evaluation import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "NUM_SINGLES", 5)
        patch.setattr(latency, "NUM_BATCHES", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def cheap_probe() -> Iterator[None]:
    """Fit the baseline `probe` only where it is asked for; tests that are about it undo this."""
    from llmft.evaluation import probe_baseline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_baseline, "LARGEST_COST", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _coarse_plots() -> Iterator[None]:
    """Save PNG files with few pixels; their contents are those of the SVG."""
    from llmft.reports import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 40)
        yield


@pytest.fixture(autouse=True)
def _hide_packages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages of plots and Word files, which take most of the time of a report.

    Reports leave them out, as for users who have not installed these packages. Tests that are about
    them are marked: `with_packages("matplotlib", "docx")`. Fixtures of modules and sessions have
    these packages, since they are made before.
    """
    marked = request.node.get_closest_marker("with_packages")
    for package in REPORT_PACKAGES - set(marked.args if marked else ()):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(autouse=True)
def _restore_logger() -> Iterator[None]:
    """Undo what a command sets for its process; the API must not need it."""
    logger = logging.getLogger("llmft")
    yield
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def _block_sockets() -> None:
    """Nothing may leave this machine (H7)."""
    pytest_socket.disable_socket(allow_unix_socket=True)
