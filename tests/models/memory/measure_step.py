"""Run two training steps in a fresh process and print the memory that they took, in GiB.

Called with a JSON object: tiny and base (folders), tuning, precision, checkpointing, num_prompt
(None for whole rows without a prompt), num_rows, num_tokens.
"""

import json
import sys
from typing import Any

import torch

from llmft.config.recipe import BaseConfig
from llmft.models.acceleration.dropout import fast_dropout
from llmft.models.acceleration.precision import cast_frozen_weights
from llmft.models.acceleration.shared_prompt import SharedPrompt
from llmft.models.device import autocast
from llmft.models.heads import LabelSpace
from llmft.models.loading import load_model
from llmft.models.memory.peak import measure_peak_memory, reset_peak_memory


def take_steps(base: str, given: dict[str, Any]) -> float:
    """Return the peak of the process in two steps, as `llmft train` takes them."""
    config = BaseConfig(model=base, tuning=given["tuning"])
    space = LabelSpace("regression", ["risk", "calm"])
    model: Any = load_model(
        config, labels=space, pad_token_id=0, seed=0, precision=given["precision"]
    ).model.train()
    for parameter in model.parameters():  # else the file that they are mapped from counts as well
        parameter.data = parameter.data.clone()
    if given["precision"] == "bfloat16":
        cast_frozen_weights(model)
    if given["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if given["num_prompt"] is not None:
        SharedPrompt(model, [7] * given["num_prompt"])
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)
    ids_BT = torch.full((given["num_rows"], given["num_tokens"]), 7)
    reset_peak_memory()
    with fast_dropout(model):
        for _ in range(2):
            with autocast(ids_BT.device, given["precision"]):
                output = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
            output.logits.pow(2).mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return measure_peak_memory()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    take_steps(given["tiny"], given)  # what the libraries take
    reset_peak_memory()
    before = measure_peak_memory()
    print(take_steps(given["base"], given) - before)
