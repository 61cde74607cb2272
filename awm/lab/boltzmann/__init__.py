"""Reverse flow matching on Boltzmann targets of which everything is known; ``awm-lab boltzmann``."""

from awm.lab.boltzmann.command import main

__all__ = ["main"]
