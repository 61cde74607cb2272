"""Prompts of the shapes world."""
