"""llmft: fine-tune small models on what an expensive LLM scored, and compare them honestly."""

__version__ = "0.1.0"
