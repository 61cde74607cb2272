"""What matching noisy targets costs against clean ones, the claim AWM rests on (arXiv 2509.25050, section 3).

A sampler's own likelihood, as DDPO and Flow-GRPO use it, is a matching loss whose target depends on a noisy state; its
minimiser is the same as that of the clean loss, its variance is not. Measured here: the targets' variances, the
gradients' and the speed of learning, on problems whose true velocity is known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from awm.lab.boltzmann.mixture import GaussianMixture
from awm.lab.figures import save_figure
from awm.lab.matching.convergence import BATCH, EARLIEST, LAGS, LATEST, learn_linear, learn_mlp
from awm.lab.matching.features import FREQUENCY_STD, NUM_FEATURES, CosineFeatures
from awm.lab.matching.gradients import LAGS as GRADIENT_LAGS
from awm.lab.matching.gradients import LEVELS, fit_policy, matching_noise, policy_gradient_noise
from awm.lab.matching.plots import Findings, draw, equal_rate
from awm.lab.matching.tables import convergence_table, matching_noise_table, policy_noise_table, variance_table
from awm.lab.matching.variances import step_variances
from awm.lab.networks import seed_generators
from awm.lab.options import experiment_parser, positive
from awm.lab.record import write_result

STEPS = (50, 100, 200, 350, 500, 700, 1000, 1400, 2000, 2800, 4000)
SHOWN = (500, 1000, 2000, 4000)
EARLY = 500
"""Steps of the half-trained model whose gradients are compared."""


def main(argv: Sequence[str], program: str) -> int:
    """Measure, print the tables, write matching.json and matching.png."""
    parser = experiment_parser(program, __doc__, seeds=5)
    parser.add_argument("--samples", type=positive, default=8192, metavar="N", help="per seed and gradient estimate")
    parser.add_argument("--steps", type=positive, default=4000, metavar="N", help="of learning, at least 500")
    options = parser.parse_args(argv)
    if options.steps < EARLY or options.samples < 512:
        raise ValueError(f"--steps={options.steps} and --samples={options.samples} must be at least {EARLY} and 512.")
    started = time.monotonic()
    found = measure(options.seeds, num_samples=options.samples, num_steps=options.steps)
    print(report(found))
    path = write_result(
        options.out,
        "matching",
        command=[*program.split(), *argv],
        settings={
            "seeds": options.seeds,
            "samples": options.samples,
            "steps": options.steps,
            "batch": BATCH,
            "times": [EARLIEST, LATEST],
            "features": NUM_FEATURES,
            "frequency_std": FREQUENCY_STD,
            "half_trained_at": EARLY,
        },
        results=record(found),
        seconds=time.monotonic() - started,
    )
    print(f"\n{path}", save_figure(draw(found), options.out, "matching"), sep="\n")
    return 0


def measure(num_seeds: int, *, num_samples: int, num_steps: int) -> Findings:
    """Run all parts.

    Args:
        num_seeds: seeds 0 to num_seeds - 1.
        num_samples: per seed of each gradient's moments; times 16 per step of each variance.
        num_steps: of learning, at least ``EARLY``.
    """
    seeds = range(num_seeds)
    generator = torch.Generator().manual_seed(0)
    targets = {"N(0, 1)": _mixture((1.0,), (0.0,), (1.0,)), "two modes": _mixture((0.3, 0.7), (-1.0, 1.0), (0.3, 0.3))}
    variances = {
        name: step_variances(target, generator, num_samples=16 * num_samples) for name, target in targets.items()
    }
    steps = tuple(step for step in STEPS if step <= num_steps)
    linear, kept = learn_linear(seeds, steps=steps)
    half_trained = kept[steps.index(EARLY), :, :, 0, equal_rate(linear)]
    features = CosineFeatures(2, seed_generators(seeds, "matching/features"))
    policy = fit_policy(features, seeds)
    return Findings(
        variances=variances,
        matching_lags=GRADIENT_LAGS,
        matching_noise=matching_noise(seeds, features, half_trained, num_samples=num_samples),
        policy_noise=[
            policy_gradient_noise(seeds, features, policy, level=level, num_samples=num_samples) for level in LEVELS
        ],
        linear=linear,
        mlp=learn_mlp(seeds, steps=steps),
    )


def report(found: Findings) -> str:
    """All tables as text."""
    rate = equal_rate(found.linear)
    shown = [i for i, step in enumerate(found.linear.steps) if step in SHOWN]
    linear, mlp = (
        replace(learning, steps=tuple(learning.steps[i] for i in shown), error=learning.error[shown])
        for learning in (found.linear, found.mlp)
    )
    return "\n\n".join(
        (
            variance_table(found.variances),
            matching_noise_table(found.matching_lags, found.matching_noise),
            policy_noise_table(found.policy_noise),
            convergence_table("Error of the learned velocity, cosine features, equal rates", linear, at=rate),
            convergence_table("The same, each target at its best rate", linear, at=None),
            convergence_table("The same, perceptron with Adam", mlp, at=0),
        )
    )


def record(found: Findings) -> dict[str, Any]:
    """All findings as plain data; an infinite lag, the clean target, is null."""
    learning = {"linear": found.linear, "mlp": found.mlp}
    return {
        "variances": {name: [asdict(step) for step in steps] for name, steps in found.variances.items()},
        "matching_gradient": {"lags": found.matching_lags, "noise": found.matching_noise},
        "policy_gradient": [asdict(result) for result in found.policy_noise],
        "convergence": {
            name: {
                "lags": LAGS,
                "learning_rates": curves.learning_rates,
                "best_learning_rates": [curves.learning_rates[i] for i in curves.best().tolist()],
                "steps": curves.steps,
                "mean": curves.error.mean(-1),
                "std": curves.error.std(-1) if curves.error.shape[-1] > 1 else None,
            }
            for name, curves in learning.items()
        },
    }


def _mixture(weights: tuple[float, ...], means: tuple[float, ...], stds: tuple[float, ...]) -> GaussianMixture:
    """A mixture on the line, float64."""
    weight, mean, std = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds))
    return GaussianMixture(weight, mean.unsqueeze(-1), std)
