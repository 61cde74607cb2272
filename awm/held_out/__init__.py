"""Held-out evaluation as a tool: what is scored, what is already scored, and what it comes to."""
