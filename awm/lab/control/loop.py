"""The loop of online RL: step the environments, keep what happened, learn from what is kept, evaluate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from awm.flow.rng import sample_generator
from awm.lab.control.agent import Agent
from awm.lab.control.collector import Collector
from awm.lab.control.environments import make_environments, vector_sizes
from awm.lab.control.evaluation import episode_returns
from awm.lab.control.replay import ReplayBuffer
from awm.lab.control.results import Evaluation
from awm.lab.control.settings import ControlSettings

EVALUATION_SEED = 10_000
"""Of the first evaluation episode, the same for all runs."""
TRAINING_SEED = 1_000_000
"""Of the first training environment of seed 0: no evaluation has so many episodes that they would meet."""


def train(settings: ControlSettings, *, seed: int, device: str = "cpu") -> Iterator[Evaluation]:
    """Train one run and give an evaluation at the start, after every interval, and at the end.

    The caller may stop taking them at any time; the environments are then closed.

    Args:
        settings: of the run.
        seed: of parameters, environments and all draws.
        device: where networks and replay buffer live.
    """
    with Run(settings, seed=seed, device=device) as run:
        yield run.evaluate()
        due = settings.evaluation_interval
        while run.steps < settings.total_steps:
            run.step()
            if run.steps >= due or run.steps >= settings.total_steps:
                yield run.evaluate()
                due += settings.evaluation_interval


def environment_seeds(seed: int, count: int) -> list[int]:
    """One seed for each training environment of a run; runs of other seeds share none of them."""
    return [TRAINING_SEED + seed * count + i for i in range(count)]


class Run:
    """Environments, agent and buffer of one run; a context manager, because environments have to be closed.

    Args:
        settings: of the run.
        seed: of everything drawn.
        device: where networks and replay buffer live.
    """

    def __init__(self, settings: ControlSettings, *, seed: int, device: str = "cpu") -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.environments, self.evaluators = (
            make_environments(settings.environment, count, landscape=settings.landscape)
            for count in (settings.num_environments, settings.evaluation_episodes)
        )
        observation_dim, action_dim = vector_sizes(self.environments)
        self.agent = Agent(settings, observation_dim, action_dim, seed=seed, device=device)
        capacity = min(settings.buffer_size, settings.total_steps + settings.num_environments)
        self.buffer = ReplayBuffer(capacity, observation_dim, action_dim, device=device)
        self.collector = Collector(self.environments, seed=environment_seeds(seed, settings.num_environments))
        self.draws = sample_generator(seed, "control/replay", 0, 0, device)
        self.log = MeanLog()
        self.steps = 0
        self.start = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.environments.close()
        self.evaluators.close()

    def step(self) -> None:
        """One step of every environment and the updates that are then due."""
        settings, agent = self.settings, self.agent
        warm = self.steps < settings.warmup_steps
        observation = self.collector.observation
        action = agent.random_actions(len(observation)) if warm else agent.explore(observation)
        transitions, _ = self.collector.step(action)
        self.buffer.add(transitions)
        self.steps += len(transitions)
        while agent.num_updates * settings.steps_per_update < self.steps - settings.warmup_steps:
            self.log.add(agent.update(self.buffer.sample(settings.batch_size, self.draws)))

    def evaluate(self) -> Evaluation:
        """Returns of the agent as it is; the draws of training are left alone."""
        generator = sample_generator(self.seed, "control/evaluation", 0, self.steps, self.device)
        returns = episode_returns(
            self.evaluators, lambda state: self.agent.best_action(state, generator), seed=EVALUATION_SEED
        )
        return Evaluation(self.steps, returns, time.monotonic() - self.start, self.log.take())


class MeanLog:
    """Means of named numbers since they were last taken."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.count = 0

    def add(self, metrics: Mapping[str, float]) -> None:
        """One more value of each."""
        for name, value in metrics.items():
            self.total[name] = self.total.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {name: total / self.count for name, total in self.total.items()}
        self.total, self.count = {}, 0
        return means
