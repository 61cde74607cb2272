"""Reverse flow matching: targets for flow and diffusion policies from an unnormalised density, no samples needed.

See Reverse Flow Matching, arXiv 2601.08136. Draw candidates (``proposals``), add log p to their ``log_weight``, and ask
``velocity_target`` for the regression target; everything is a pure function of tensors.
"""

from awm.reverse_matching.actions import clamped_log_density, squashed_log_density
from awm.reverse_matching.estimators import Estimate, Estimator, cap_norm, normalised_weights, velocity_target
from awm.reverse_matching.fisher import FisherInformation
from awm.reverse_matching.images import gaussian_share, image_target_exact, image_target_gaussian
from awm.reverse_matching.path import STRAIGHT, Path, Prediction, cosine_path
from awm.reverse_matching.proposals import (
    Candidates,
    GaussianProposal,
    atom_candidates,
    data_log_likelihood,
    mixture_candidates,
    policy_candidates,
    reverse_candidates,
)

__all__ = [
    "STRAIGHT",
    "Candidates",
    "Estimate",
    "Estimator",
    "FisherInformation",
    "GaussianProposal",
    "Path",
    "Prediction",
    "atom_candidates",
    "cap_norm",
    "clamped_log_density",
    "cosine_path",
    "data_log_likelihood",
    "gaussian_share",
    "image_target_exact",
    "image_target_gaussian",
    "mixture_candidates",
    "normalised_weights",
    "policy_candidates",
    "reverse_candidates",
    "squashed_log_density",
    "velocity_target",
]
