"""awm-bench throughput: how fast the trainer is, against what the device could do and against the common way."""
