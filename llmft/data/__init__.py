"""Sources, cleaning, splitting, prompts, encoding and token budgets."""
