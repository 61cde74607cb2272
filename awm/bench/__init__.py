"""awm-bench: rival algorithms in one trainer, on one small world, with the same budget."""
