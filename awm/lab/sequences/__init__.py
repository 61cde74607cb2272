"""SiMPO on a masked-diffusion model of regulatory DNA sequences; ``awm-lab sequences``."""

from awm.lab.sequences.command import main

__all__ = ["main"]
