"""``awm-lab EXPERIMENT [options]``: runs one small problem and writes its numbers (JSON) and its figure (PNG)."""

from __future__ import annotations

from awm.subcommands import Subcommand, Subcommands

EXPERIMENTS = {
    "bandits": Subcommand("awm.lab.bandits:main", "SiMPO: which weighting finds the best of two arms, and how fast"),
    "boltzmann": Subcommand(
        "awm.lab.boltzmann:main", "RFM: bias and variance of the estimators on 2-D Boltzmann targets"
    ),
    "matching": Subcommand("awm.lab.matching:main", "AWM: what matching noisy targets costs against clean ones"),
    "control": Subcommand("awm.lab.control:main", "SiMPO and RFM as online RL on MuJoCo locomotion (needs gymnasium)"),
    "sequences": Subcommand("awm.lab.sequences:main", "SiMPO on a masked-diffusion model of regulatory DNA sequences"),
}
COMMAND = Subcommands(
    "awm-lab",
    "experiment",
    EXPERIMENTS,
    about="Small problems with known answers; each writes FOLDER/EXPERIMENT.json and .png and prints its table.",
    more="; all have --seeds N and --out FOLDER",
    install="pip install -e '.[lab]'",
)
REGISTRY = COMMAND.registry
main = COMMAND.main
