"""awm-bench: rival algorithms in one trainer, on one small world, with the same budget; and how fast the trainer is."""
