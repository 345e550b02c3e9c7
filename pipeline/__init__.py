"""What the Snakefile needs besides lib: which experiments there are, and how a notebook runs without a person."""
