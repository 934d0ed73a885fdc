"""What `llmft bench` measures: arms side by side, and the FLOPs that they need."""
