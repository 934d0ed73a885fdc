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
    num_labels = len(json.loads((folder / "config.json").read_text())["id2label"])
    if (folder / "adapter_config.json").is_file():
        return AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def main(output: str, folders: list[str]) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for folder in map(Path, folders):
        with torch.inference_mode():
            plain = open_plainly(folder).eval()(input_ids=INPUT_IDS).logits[0].tolist()
        assert "llmft" not in sys.modules
        found[str(folder)] = {"plain": plain}
    from llmft.models.saved import load_saved

    for folder in map(Path, folders):
        with torch.inference_mode():
            own = load_saved(folder).model(input_ids=INPUT_IDS).logits[0].tolist()
        found[str(folder)]["llmft"] = own
    Path(output).write_text(json.dumps(found))


main(sys.argv[1], sys.argv[2:])
