"""Data sets and prompts in, records out: one file a task."""
