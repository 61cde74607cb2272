"""The plug-ins that a configuration names: adding one is one file and one row here."""

from __future__ import annotations

from ml_collections import ConfigDict

from awm.registry import Registry

SAMPLERS = Registry(
    "sampler",
    {
        "sa_solver": "awm.samplers.sa_solver:SASolver",
        "ddim": "awm.samplers.ddim:DDIM",
        "flow_sde": "awm.samplers.flow_sde:FlowSDE",
        "dance_sde": "awm.samplers.dance_sde:DanceSDE",
        "cps": "awm.samplers.cps:CPS",
        "ddpm": "awm.samplers.ddpm:DDPM",
    },
)
STEPWISE = ("flow_sde", "dance_sde", "cps", "ddpm")
"""Samplers whose steps are Gaussian transitions with a likelihood."""
BOUNDED = ("cps", "ddpm")
"""Those of them whose noise level is a share, at most 1."""
OBJECTIVES = Registry(
    "train.algorithm",
    {
        "awm": "awm.objectives.awm:AWM",
        "simpo": "awm.objectives.simpo:SiMPO",
        "rfm": "awm.objectives.rfm:RFM",
        # Likelihood of the sampler's steps; they differ in the sampler, see awm.validation.algorithms.
        "flow_grpo": "awm.objectives.flow_grpo:FlowGRPO",
        "flow_grpo_fast": "awm.objectives.flow_grpo:FlowGRPO",
        "mix_grpo": "awm.objectives.flow_grpo:FlowGRPO",
        "cps": "awm.objectives.flow_grpo:FlowGRPO",
        "ddpo": "awm.objectives.flow_grpo:FlowGRPO",
        "grpo_guard": "awm.objectives.grpo_guard:GRPOGuard",
        # On the forward process, any sampler.
        "nft": "awm.objectives.nft:DiffusionNFT",
        "flow_awr": "awm.objectives.flow_awr:FlowAWR",
        "v_grpo": "awm.objectives.v_grpo:VGRPO",
        "dpo": "awm.objectives.dpo:DiffusionDPO",
        "dgpo": "awm.objectives.dgpo:DGPO",
        "crd": "awm.objectives.crd:CRD",
        "rwr": "awm.objectives.rwr:RWR",
        "awr": "awm.objectives.awr:AWR",
        "dpmd": "awm.objectives.dpmd:DPMD",
        "qvpo": "awm.objectives.qvpo:QVPO",
    },
)
TRACKERS = ("wandb", "tensorboard", "none")


def rollout_sampler(config: ConfigDict) -> str:
    """The sampler's name: sample.sampler, or what train.use_sa_solver and sde_frac say when it is empty."""
    if config.sample.sampler:
        return str(config.sample.sampler)
    if config.train.use_sa_solver:
        return "sa_solver"
    return "flow_sde" if config.sample.sde_frac > 0 and config.sample.noise_level > 0 else "ddim"
