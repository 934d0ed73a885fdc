"""`python -m llmft.train`, with DeepSpeed on CPUs: it asks for GPUs otherwise (L7).

Only for tests: `torchrun --nproc_per_node 2 deepspeed_on_cpu.py RECIPE`.
"""

import os
import runpy

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType

MakeArguments = transformers.TrainingArguments.__post_init__


def make_arguments(self: transformers.TrainingArguments) -> None:
    PartialState(cpu=True).distributed_type = DistributedType.DEEPSPEED
    deepspeed.init_distributed(dist_backend="gloo")
    self.accelerator_config = {"use_configured_state": True}
    MakeArguments(self)


transformers.TrainingArguments.__post_init__ = make_arguments
runpy.run_module("llmft.train", run_name="__main__", alter_sys=True)
