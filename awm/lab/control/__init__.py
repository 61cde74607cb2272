"""Online RL on Gymnasium environments: flow and diffusion policies trained with SiMPO and with reverse flow matching.

The policy samples actions by an ODE from noise; two critics learn Q off-policy; the policy is improved by matching
weighted candidate actions (SiMPO) or a velocity estimated from Q and its gradient (RFM). Weightings, temperature,
losses, path and sampler are those of the image trainer.
"""

from awm.lab.control.command import main

__all__ = ["main"]
