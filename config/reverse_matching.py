"""Reverse Flow Matching (arXiv 2601.08136) on any task of ``config/awm.py``.

    awm-train --config config/awm.py:pickscore_sd3_rfm_1node
    awm-train --config config/awm.py:pickscore_sd3_rfm_gradient_1node

The paper has no text-to-image experiment. The estimator "noise" works with every reward and is, at image size, flow
matching with softmax weights of a fixed temperature. "combined" also follows the reward's gradient, and so needs a
reward that is differentiable in the trainer's process, with its memory.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def rfm(config: ConfigDict, run_name: str) -> ConfigDict:
    """``config`` with RFM as its algorithm, in place."""
    config.run_name = run_name
    config.train.algorithm = "rfm"
    config.train.weighting = "Uniform"
    return config


def with_gradient(config: ConfigDict) -> ConfigDict:
    """``config`` with PickScore in the trainer's process and its gradient followed, in place."""
    with config.unlocked():
        config.reward_fn = ConfigDict({"differentiable_pickscore": 1.0}, allow_dotted_keys=True)
    config.train.rfm_estimator = "combined"
    return config
