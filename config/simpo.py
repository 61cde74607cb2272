"""Signed Measure Policy Optimization (arXiv 2603.10250) on any task of ``config/awm.py``.

    awm-train --config config/awm.py:geneval_sd3_simpo_linear_neg_1node

The paper has no text-to-image experiment; these recipes transfer it: the weights of a prompt's images, their
temperature solved for the paper's KL of 1.5 nats, and the uniform time weighting of its theory. Without AWM's KL to
the slow anchor, which would halve what the weights ask for and leave nothing negative of a floor of -0.5.
"""

from __future__ import annotations

from ml_collections import ConfigDict

SIMPO: dict[str, tuple[str, float]] = {
    "exp": ("exp", 0.0),
    "linear": ("linear", 0.0),
    "square": ("square", 0.0),
    "linear_neg": ("linear", -0.5),
    "square_neg": ("square", -0.5),
}
"""Kind -> weighting and floor."""


def simpo(config: ConfigDict, run_name: str, kind: str) -> ConfigDict:
    """``config`` with SiMPO as its algorithm, in place."""
    config.run_name = run_name
    config.train.algorithm = "simpo"
    config.train.simpo_weighting, config.train.simpo_floor = SIMPO[kind]
    config.train.weighting = "Uniform"
    config.train.ema_beta = 0.0
    return config
