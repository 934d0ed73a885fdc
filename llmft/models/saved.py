"""A trained model as a Hugging Face folder, its spec, and training from its weights."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from llmft.config.head import Head
from llmft.config.recipe import BaseConfig, Precision, Recipe, ResolvedRecipe, TokensConfig
from llmft.config.task import FieldsConfig, LabelsConfig, ScoresConfig
from llmft.data.prepared import PreparedData
from llmft.data.prompts import NO_PROMPT, Prompt
from llmft.errors import UserError
from llmft.files import hash_file, hash_text
from llmft.models.device import autocast, choose_precision
from llmft.results.files import ResultFile, read_result, require_keys, write_result
from llmft.results.run import Pooling

# Importing torch takes seconds, and a spec has to be readable without it.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from llmft.models.heads import LabelSpace
SPEC_NAME = "llmft.json"


class ModelSpec(ResultFile):
    """What prediction needs in addition to the weights; `model/llmft.json`."""

    schema_version: Literal[2] = 2
    name: str
    """Name of the recipe."""
    task: str
    """Name of the task."""
    base: BaseConfig
    """The base, its revision pinned to a commit where it is on the Hub."""
    base_hash: str | None
    """Hash of a local base's weights."""
    base_pretrained: bool
    head: Head
    label_names: list[str]
    """Dimensions, classes or labels, in the order of the outputs."""
    labels: LabelsConfig = Field(discriminator="type")
    """The task's section `labels`."""
    prompt: Annotated[dict[str, str], require_keys("before", "article", "after")] | None
    """Parts `before`, `article`, `after`; None if the prompt was excluded."""
    share_prompt: bool = True
    """Whether the prompt may be computed once for all rows."""
    pooling: Pooling | None = None
    """What the head reads; None for the model classes of transformers."""
    num_prompt_tokens: int = 0
    """Leading tokens of every input that are not pooled, with `pooling`."""
    fields: FieldsConfig
    tokens: TokensConfig
    precision: Precision
    data_fingerprint: str
    num_parameters: int
    num_trainable: int

    @model_validator(mode="after")
    def _refuse_other_names(self) -> Self:
        if isinstance(self.labels, ScoresConfig) and self.labels.dimensions != self.label_names:
            raise ValueError("label_names: must be the same as labels.dimensions")
        return self

    @property
    def label_space(self) -> "LabelSpace":
        """The outputs of the head."""
        from llmft.models.heads import LabelSpace

        return LabelSpace(self.head, self.label_names)

    def make_prompt(self) -> Prompt:
        """Return the prompt that the model was trained with."""
        return Prompt(**self.prompt) if self.prompt else NO_PROMPT


def make_spec(
    model: "nn.Module", base: BaseConfig, recipe: ResolvedRecipe, data: PreparedData, prompt: Prompt
) -> ModelSpec:
    """Return the spec of a model to be trained from a recipe, its base pinned to a commit."""
    from llmft.models.bases import hash_base, was_pretrained
    from llmft.models.pooling import find_pooled
    from llmft.models.quantisation import count_weights

    config, pooled = recipe.config, find_pooled(model)
    return ModelSpec(
        name=config.name,
        task=recipe.task.name,
        base=base,
        base_hash=hash_base(base),
        base_pretrained=was_pretrained(base),
        head=config.head.type,
        label_names=data.label_names,
        labels=recipe.task.labels,
        prompt=prompt._asdict() if recipe.prompt_path else None,
        share_prompt=config.prompt.share,
        pooling=pooled.pooling if pooled is not None else None,
        num_prompt_tokens=pooled.num_prompt if pooled is not None else 0,
        fields=recipe.task.fields,
        tokens=config.tokens,
        precision=choose_precision(config.train.precision),
        data_fingerprint=data.fingerprint,
        num_parameters=sum(count_weights(p) for p in model.parameters()),
        num_trainable=sum(count_weights(p) for p in model.parameters() if p.requires_grad),
    )


class SavedModel(NamedTuple):
    """A model opened from its folder."""

    model: "nn.Module"
    tokenizer: Any
    spec: ModelSpec


def save_model(model: Any, *, tokenizer: Any, spec: ModelSpec, folder: Path) -> None:
    """Write a model folder atomically.

    Raises:
        UserError: If a tensor would be saved empty (R1) or the disk is full.
    """
    from safetensors import SafetensorError

    from llmft.models.module_folder import save_head, save_modules

    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        if spec.base.tuning == "frozen":
            save_head(model, building)
            model.config.save_pretrained(building)
        elif spec.pooling is not None:
            save_modules(model, folder=building, max_length=spec.tokens.max_length)
        elif hasattr(model, "peft_config"):
            model.save_pretrained(building, save_embedding_layers=False)  # "auto" asks the Hub (H7)
            model.get_base_model().config.save_pretrained(building)  # PEFT leaves it out
        else:
            model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        write_result(building / SPEC_NAME, spec)
        _refuse_empty_tensors(building)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be saved: {error}; free some space and run the same "
            "command again"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_saved(folder: Path) -> SavedModel:
    """Load a folder that `save_model` wrote, with its base as in training, in eval mode.

    Raises:
        UserError: If it is not such a folder, or its base is missing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from llmft.models.bases import hash_base
    from llmft.models.heads import compute_head_in_float32, find_output_layer
    from llmft.models.loading import load_base_for_adapter

    spec = read_spec(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if spec.base.tuning != "full" and hash_base(spec.base) != spec.base_hash:
            raise UserError(
                f"{folder}: the base {spec.base.model} is not the one that it was trained on: its "
                "weights changed; restore them or train again"
            )
        if spec.pooling is not None:
            model: Any = _load_pooled(folder, spec, tokenizer)
        elif (folder / "adapter_config.json").is_file():
            from peft import PeftModel

            base = load_base_for_adapter(
                spec.base,
                labels=spec.label_space,
                pad_token_id=tokenizer.pad_token_id,
                precision=spec.precision,
            )
            model = PeftModel.from_pretrained(base, folder)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the model cannot be loaded: {error}; restore it, or train again"
        ) from error
    compute_head_in_float32(model)
    num_outputs = find_output_layer(model).out_features
    if num_outputs != len(spec.label_space.logit_names):
        raise UserError(
            f"{folder / SPEC_NAME}: label_names: found {len(spec.label_names)} for a {spec.head} "
            f"head, but the model has {num_outputs} outputs; restore the file, or train again"
        )
    return SavedModel(model.eval(), tokenizer, spec)


def _load_pooled(folder: Path, spec: ModelSpec, tokenizer: Any) -> Any:
    """Load a base, its pooling and its head: all of it, or an adapter or a head on the base."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    from llmft.models.loading import load_frozen, load_model
    from llmft.models.module_folder import load_modules, read_head
    from llmft.models.pooling import drop_pooler, make_pooled_model

    assert spec.pooling is not None
    labels, num_prompt = spec.label_space, spec.num_prompt_tokens
    options: dict[str, Any] = {
        "labels": labels, "pad_token_id": tokenizer.pad_token_id, "precision": spec.precision,
    }  # fmt: skip
    try:
        if spec.base.tuning in ("lora", "qlora"):
            model: Any = load_model(
                spec.base, seed=0, pooling=spec.pooling, num_prompt=num_prompt, **options
            ).model
            load_modules(model, folder)
            return model
        if spec.base.tuning == "frozen":
            base = load_frozen(spec.base, **options)
        else:
            base = drop_pooler(
                AutoModel.from_pretrained(
                    folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
                )
            )
        model = make_pooled_model(
            base, spec.pooling, num_outputs=len(labels.logit_names), num_prompt=num_prompt
        )
        model.score.load_state_dict(read_head(folder))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(str(error)) from error
    return model


def check_saved_outputs(
    model: "nn.Module", folder: Path, *, batch: "dict[str, Tensor]", precision: Precision
) -> SavedModel:
    """Load a saved model, and check that its outputs are those of the trained one (H1).

    Args:
        model: The trained model; its weights are removed before the saved ones are loaded, so that
            memory holds one model at a time.
        folder: Folder of the saved model.
        batch: Some unshared inputs.
        precision: Precision of the training.

    Returns:
        The saved model.

    Raises:
        RuntimeError: If they differ; the folder is kept.
    """
    import torch

    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.inference_mode(), autocast(device, precision):
        expected = model.eval()(**batch).logits.float()
    for weights in (*model.parameters(), *model.buffers()):
        weights.grad, weights.data = None, weights.data.new_empty(0)
    saved = load_saved(folder)
    with torch.inference_mode(), autocast(device, precision):
        found = saved.model.to(device)(**batch).logits.float()
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise RuntimeError(
            f"{folder}: the saved model's outputs differ by up to {worst:.3g} from those of the "
            "trained one, so it must not be used; report the base and the package versions too"
        )
    return saved


def read_spec(folder: Path) -> ModelSpec:
    """Read `llmft.json`.

    Raises:
        UserError: If the folder holds no trained model of llmft.
    """
    path = folder / SPEC_NAME
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so {folder.parent} is not a finished run; train it with "
            "`llmft train RECIPE`"
        )
    return read_result(path, ModelSpec, fix="restore the file, or train again")


def hash_model(folder: Path) -> str:
    """Return a hash over weights, configuration, tokenizer and spec: the model's identity.

    Raises:
        UserError: If the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, so the run has no model; train it again")
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
    return hash_text("\n".join(f"{p.relative_to(folder)} {hash_file(p)}" for p in files))


def _refuse_empty_tensors(folder: Path) -> None:
    from safetensors import safe_open

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if 0 in file.get_slice(name).get_shape():
                    raise UserError(
                        f"{path}: the tensor {name} would be saved empty; "
                        "please report it with your recipe"
                    )


def check_init_compatibility(config: Recipe, *, label_names: list[str]) -> None:
    """Stop if the weights of `init_from` do not fit the model that the recipe describes.

    Raises:
        UserError: With both values.
    """
    from llmft.models.bases import hash_base, read_config
    from llmft.models.pooling import choose_pooling

    assert config.init_from is not None
    spec = read_spec(Path(config.init_from) / "model")
    pooling = choose_pooling(config.base, read_config(config.base))
    pairs = {
        "base.model": (config.base.model, spec.base.model),
        "base.tuning": (config.base.tuning, spec.base.tuning),
        "base.lora": (config.base.lora, spec.base.lora),
        "base.pooling": (
            pooling.describe() if pooling else "transformers",
            spec.pooling.describe() if spec.pooling else "transformers",
        ),
        "base.model (its weights)": (hash_base(config.base), spec.base_hash),
        "head.type": (config.head.type, spec.head),
        "labels": (label_names, spec.label_names),
    }
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(
                f"init_from: {config.init_from} was trained with another {name}: {there}, but the "
                f"recipe has {here}; use a run that agrees, or remove init_from"
            )


def load_weights(model: Any, folder: Path) -> None:
    """Load the weights of a saved model or a checkpoint into a model, in place.

    Args:
        model: As `load_model` returns it.
        folder: Folder with an adapter, or with a full model in one or several files.
    """
    import torch
    from safetensors.torch import load_file

    from llmft.models.module_folder import has_modules, load_modules
    from llmft.models.pooling import PooledModel

    if has_modules(folder):
        load_modules(model, folder)
        return
    if isinstance(model, PooledModel):
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return
    if hasattr(model, "peft_config"):
        import peft

        weights = load_file(folder / "adapter_model.safetensors")
        unknown = peft.set_peft_model_state_dict(model, weights).unexpected_keys
        assert not unknown, f"weights for no place in the model: {unknown}"
        return
    # Through transformers, since it may have saved the weights under older parameter names.
    found, info = type(model).from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], f"weights that were not saved: {info['missing_keys']}"
    model.load_state_dict(found.state_dict())
