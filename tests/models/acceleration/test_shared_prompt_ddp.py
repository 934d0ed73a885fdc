"""Two processes that share the prompt end with the gradient of one that does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from llmft.models.acceleration.shared_prompt import SharedPrompt
from tests.models.acceleration.test_shared_prompt import (
    Batch,
    Measured,
    make_batch,
    make_model,
    measure,
    measure_difference,
)

BATCHES = [
    Batch(make_batch(13, []).prompt, make_batch(0, lengths).rows) for lengths in ([4, 9], [7, 2])
]


def _train_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    model = make_model(lora=True)
    SharedPrompt(model, BATCHES[rank].prompt)
    found = measure(DistributedDataParallel(model), BATCHES[rank].own)
    torch.save(found._asdict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.launched
def test_ddp_averages_the_gradients_of_the_plain_way(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_one_rank, args=(str(tmp_path),), nprocs=2)
    model: Any = make_model(lora=True)
    expected = measure(model, *(batch.whole for batch in BATCHES))
    ranks = [Measured(**torch.load(tmp_path / f"{rank}.pt")) for rank in range(2)]
    for found in ranks:
        summed = {name.removeprefix("module."): 2 * g for name, g in found.gradients.items()}
        logits = torch.cat([rank.logits for rank in ranks])
        assert measure_difference(expected, Measured(logits, summed)) < 1e-5
