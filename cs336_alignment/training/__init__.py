"""The algorithms, each readable top to bottom as the paper's pseudo-code."""
