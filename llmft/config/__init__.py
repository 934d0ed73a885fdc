"""Every schema and every default: task, recipe and suite."""
