"""How a recipe encodes its rows: the tokenizer of its base, its prompt and its token budget."""

from typing import Any, NamedTuple

from llmft.config.recipe import Recipe
from llmft.data.encoding import Encoder
from llmft.data.prompts import Prompt, read_prompt
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer, read_limits


class OpenedEncoder(NamedTuple):
    """How a recipe encodes its rows."""

    tokenizer: Any
    prompt: Prompt
    encoder: Encoder


def open_encoder(recipe: Recipe) -> OpenedEncoder:
    """Return tokenizer, prompt and encoder of a recipe.

    Raises:
        UserError: If prompt or base cannot be read, or the base takes shorter inputs only.
    """
    config = recipe.config
    prompt = read_prompt(recipe.prompt_path, fields=recipe.task.fields)
    positions, has_segments = read_limits(config.base)
    if positions is not None and config.tokens.max_length > positions:
        raise UserError(
            f"tokens.max_length: found {config.tokens.max_length}, but {config.base.model} takes "
            f"at most {positions} tokens; lower it or choose a base for longer inputs"
        )
    tokenizer = load_tokenizer(config.base)
    if has_segments and recipe.task.fields.text_pair is not None:
        # So that other tools that open the saved tokenizer give the segments to the model too (H5).
        names = list(dict.fromkeys([*tokenizer.model_input_names, "token_type_ids"]))
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    encoder = Encoder(
        tokenizer,
        prompt=prompt,
        fields=recipe.task.fields,
        tokens=config.tokens,
        has_segments=has_segments,
    )
    return OpenedEncoder(tokenizer, prompt, encoder)
