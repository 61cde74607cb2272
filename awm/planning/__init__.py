"""What a run would do and need, worked out beforehand from its configuration."""
