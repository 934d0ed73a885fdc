"""llmft: fine-tune small models on labels of a large LLM, and compare them fairly."""

import os

__version__ = "0.1.0"

# Threads that wait by spinning make a step several times slower as soon as another program wants
# a core, and gain nothing measurable on an idle machine. It has to be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
