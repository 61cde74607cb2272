"""Whether a weighted flow-matching loss is bounded below at a noised action: the sign of E[W | x_t]."""

from __future__ import annotations

from torch import Tensor

from awm.flow.path import expand_time


def local_weight(x_t: Tensor, t: Tensor, x_0: Tensor, weight: Tensor) -> Tensor:
    """E[W | x_t] under the empirical measure of a group, whose N actions have posterior probabilities p_i.

        E[W | x_t] = sum_i p_i W_i,     p_i proportional to exp(-(x_t - (1 - t) x_i)^2 / (2 t^2))

    Where it is positive (Case I of SiMPO, arXiv 2603.10250, section 3.4) matching has a unique minimum; where it is
    negative (Case II) the loss falls without bound as the velocity moves away from the target.

    Args:
        x_t: [S, M] noised actions.
        t: [S, M] times > 0.
        x_0: [S, N] actions.
        weight: [S, N] their weights.

    Returns:
        [S, M].
    """
    time = expand_time(t, x_t.unsqueeze(-1))
    distance = (x_t.unsqueeze(-1) - (1 - time) * x_0.unsqueeze(-2)) / time
    posterior = (-distance.square() / 2).softmax(-1)
    return (posterior * weight.unsqueeze(-2)).sum(-1)
