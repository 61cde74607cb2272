"""The algorithms that are compared, each with the settings it may choose from before it is compared.

Every arm is a recipe of the tiny world: the same model, prompts, rewards, images and updates, and adapters that are not
merged for rollouts, which the likelihood rules do not allow. Its grid is declared here, before anything is run: half,
all and twice the quickstart's learning rate, which was once tuned for AWM.
"""

from __future__ import annotations

from dataclasses import dataclass

from awm.registry import nearest

RECIPES = "config/awm.py"
BASE = "quickstart"


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of an arm's grid: a short name, which is part of file names, and what it overrides."""

    name: str
    overrides: tuple[str, ...]


LEARNING_RATES = {"lr2e-3": "2e-3", "lr4e-3": "4e-3", "lr8e-3": "8e-3"}
RATES = tuple(Setting(name, (f"--config.train.learning_rate={rate}",)) for name, rate in LEARNING_RATES.items())


@dataclass(frozen=True, slots=True)
class Arm:
    """An algorithm in the comparison.

    Attributes:
        title: for people.
        source: where it was published.
        recipe: of config/awm.py.
        overrides: words of awm-train's command line that follow it.
        grid: the settings it is tuned over.
    """

    title: str
    source: str
    recipe: str = BASE
    overrides: tuple[str, ...] = ()
    grid: tuple[Setting, ...] = RATES

    def words(self, setting: Setting) -> tuple[str, ...]:
        """Of awm-train's command line, for one point of the grid."""
        return (f"--config={RECIPES}:{self.recipe}", *EVERY, *self.overrides, *setting.overrides)


def overrides(section: str = "train", /, **values: object) -> tuple[str, ...]:
    """``--config.<section>.<key>=<value>`` for each of them."""
    return tuple(f"--config.{section}.{key}={value}" for key, value in values.items())


EVERY = overrides("sample", merge_lora=False)
WD1 = overrides(algorithm="simpo", simpo_weighting="wd1", weighting="Uniform", ema_beta=0.0, old_policy="rollout")

ARMS: dict[str, Arm] = {
    "awm": Arm("AWM", "arXiv 2509.25050"),
    "simpo_exp": Arm("SiMPO exp", "arXiv 2603.10250", "quickstart_simpo_exp"),
    "simpo_linear_neg": Arm("SiMPO linear, signed", "arXiv 2603.10250", "quickstart_simpo_linear_neg"),
    "simpo_wd1": Arm("SiMPO wd1", "arXiv 2507.08838", overrides=WD1),
    "rfm": Arm("RFM", "arXiv 2601.08136", "quickstart_rfm"),
    "nft": Arm("DiffusionNFT", "arXiv 2509.16117", "quickstart_nft"),
    "flow_grpo": Arm("Flow-GRPO", "arXiv 2505.05470", "quickstart_flow_grpo"),
    "flow_grpo_fast": Arm("Flow-GRPO-Fast", "github.com/yifan123/flow_grpo", "quickstart_flow_grpo_fast"),
    "cps": Arm("Flow-CPS", "arXiv 2509.05952", "quickstart_cps"),
    "grpo_guard": Arm("GRPO-Guard", "arXiv 2510.22319", "quickstart_grpo_guard"),
    "mix_grpo": Arm("MixGRPO", "arXiv 2507.21802", "quickstart_mix_grpo"),
    "ddpo": Arm("DDPO", "arXiv 2305.13301", "quickstart_ddpo"),
    "dpo": Arm("Online DPO", "arXiv 2311.12908", "quickstart_dpo"),
    "rwr": Arm("RWR", "arXiv 2305.13301", "quickstart_rwr"),
    "awr": Arm("AWR", "arXiv 1910.00177", "quickstart_awr"),
    "dpmd": Arm("DPMD", "arXiv 2502.00361", "quickstart_dpmd"),
    "qvpo": Arm("QVPO", "arXiv 2405.16173", "quickstart_qvpo"),
    "v_grpo": Arm("V-GRPO", "arXiv 2604.23380", "quickstart_v_grpo"),
    "flow_awr": Arm("FlowAWR", "arXiv 2606.30376", "quickstart_flow_awr"),
    "dgpo": Arm("DGPO", "arXiv 2510.08425", "quickstart_dgpo"),
    "crd": Arm("CRD", "arXiv 2603.14128", "quickstart_crd"),
}


def chosen_arms(names: list[str] | None) -> dict[str, Arm]:
    """The rows called ``names``; all for None.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    for name in names or ():
        if name not in ARMS:
            raise ValueError(f"unknown arm {name!r}; known: {', '.join(ARMS)}.{nearest(name, list(ARMS))}")
    return {name: ARMS[name] for name in names or ARMS}
