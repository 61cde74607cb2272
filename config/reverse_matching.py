"""Reverse Flow Matching (arXiv 2601.08136) on any task of ``config/awm.py``.

    awm-train --config config/awm.py:pickscore_sd3_rfm_1node

The paper has no text-to-image experiment. The estimator "noise" works with every reward; "gradient" and "combined"
need one that is differentiable in this process, such as --config.reward_fn=differentiable_pickscore=1.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def rfm(config: ConfigDict, run_name: str) -> ConfigDict:
    """``config`` with RFM as its algorithm, in place."""
    config.run_name = run_name
    config.train.algorithm = "rfm"
    config.train.weighting = "Uniform"
    return config
