"""Run in a fresh process without sockets: open saved folders and write down what they say.

Arguments: an output file, then folders. Each is opened by plain transformers or PEFT, without
llmft, and then by llmft.
"""

import json
import socket
import sys
from pathlib import Path


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("a socket was opened")


socket.socket.connect = refuse  # type: ignore[method-assign]

import torch  # noqa: E402
from peft import AutoPeftModelForSequenceClassification  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9]])


def open_plainly(folder: Path) -> torch.nn.Module:
    config = json.loads((folder / "config.json").read_text())
    if (folder / "adapter_config.json").is_file():
        model = AutoPeftModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(config["id2label"]),
            quantization_config=config.get("quantization_config"),
        )
        for module in model.modules():  # else bitsandbytes rounds to bfloat16 on some CPUs
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    return AutoModelForSequenceClassification.from_pretrained(folder)


def compute(model: torch.nn.Module) -> list[float]:
    ids = INPUT_IDS.to(next(model.parameters()).device)
    logits: list[float] = model(input_ids=ids).logits[0].tolist()
    return logits


def main(output: str, folders: list[str]) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for folder in map(Path, folders):
        with torch.inference_mode():
            plain = compute(open_plainly(folder).eval())
        assert "llmft" not in sys.modules
        found[str(folder)] = {"plain": plain}
    from llmft.models.saved import load_saved

    for folder in map(Path, folders):
        with torch.inference_mode():
            own = compute(load_saved(folder).model)
        found[str(folder)]["llmft"] = own
    Path(output).write_text(json.dumps(found))


main(sys.argv[1], sys.argv[2:])
