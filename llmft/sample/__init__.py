"""The embedded sample: a small invented news data set with its recipes, prompt and suite."""
