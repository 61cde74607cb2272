"""Small stand-ins for a model and its weight sets, and the closed forms of a Gaussian data distribution."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from awm.flow.times import shifted_grid
from awm.objectives.forward_process import ForwardProcess
from awm.types import Condition, Experience


class Weights(nn.Module):
    """Three parameters, with a place to hang them."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([scale, 0.3, -0.2], dtype=dtype))


class TinyFlow:
    """A Model whose velocity is a nonlinear function of x_t, t and the condition, with three parameters."""

    transformer: nn.Module

    def __init__(self, scale: float = 0.5, dtype: torch.dtype = torch.float32) -> None:
        self.transformer = Weights(scale, dtype)
        self.calls: list[tuple[int, bool]] = []  # batch size, and whether a gradient was recorded

    @property
    def weight(self) -> nn.Parameter:
        return self.transformer.get_parameter("weight")

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, guidance_scale: float = 1.0) -> Tensor:
        a, b, c = self.weight
        time = t.reshape(-1, 1, 1, 1).to(x_t.dtype)
        told = condition.pooled.mean(1).reshape(-1, 1, 1, 1).to(x_t.dtype)
        v: Tensor = guidance_scale * (torch.tanh(a * x_t + b * time) + c * told * x_t)
        self.calls.append((len(x_t), v.requires_grad))
        return v

    def encode(self, text: Sequence[str]) -> Condition:
        pooled = torch.tensor([[float(len(words)), 1.0] for words in text])
        return Condition(pooled.unsqueeze(1), pooled)

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0[:, :3].sigmoid()

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return (4, resolution // 8, resolution // 8)


class FakePolicy:
    """A Policy that keeps whole copies of its model's weights and remembers which sets were used."""

    def __init__(self, model: TinyFlow) -> None:
        self.model = model
        self.sets = {
            name: copy.deepcopy(model.transformer.state_dict())
            for name in ("anchor", "reference", "average", "rollout")
        }
        self.used: list[str] = []
        self.equal: set[str] = set()  # what it claims to know, until current moves

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        self.used.append(name)
        if name == "current":
            yield
            return
        saved = copy.deepcopy(self.model.transformer.state_dict())
        self.model.transformer.load_state_dict(self.sets[name])
        try:
            yield
        finally:
            self.model.transformer.load_state_dict(saved)

    def sampling(self, name: str) -> AbstractContextManager[None]:
        return self.using(name)

    def equals_current(self, name: str) -> bool:
        return name in self.equal

    def current_moved(self) -> None:
        self.equal.clear()

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.model.transformer.parameters())

    def update_anchor(self, decay: float) -> None:
        self._update("anchor", decay)

    def update_average(self, decay: float) -> None:
        self._update("average", decay)

    def snapshot_rollout(self) -> None:
        self._update("rollout", 0.0)

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        return {"current": copy.deepcopy(self.model.transformer.state_dict()), **copy.deepcopy(self.sets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sets = {name: weights for name, weights in state.items() if name != "current"}
        self.model.transformer.load_state_dict(state["current"])

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        torch.save(weights, folder / "weights.pt")

    def _update(self, name: str, decay: float) -> None:
        current = self.model.transformer.state_dict()
        self.sets[name] = {k: decay * self.sets[name][k] + (1 - decay) * v for k, v in current.items()}


def on_forward_process(kind: Callable[..., Any], **options: Any) -> Any:
    """An objective made as the trainer makes it: those of the options that are ``ForwardProcess``'s go there."""
    names = inspect.signature(ForwardProcess).parameters
    shared = {name: value for name, value in options.items() if name in names}
    own = {name: value for name, value in options.items() if name not in names}
    return kind(forward=ForwardProcess(**{"grid": shifted_grid(14), **shared}), **own)


def make_experience(
    batch: int = 5, prompts: int = 2, shape: tuple[int, int, int] = (2, 3, 3), dtype: torch.dtype = torch.float32
) -> Experience:
    """A small on-policy experience with advantages of both signs."""
    generator = torch.Generator().manual_seed(0)
    return Experience(
        x_0=torch.randn(batch, *shape, generator=generator, dtype=dtype),
        condition=Condition(
            torch.randn(prompts, 4, 3, generator=generator, dtype=dtype),
            torch.randn(prompts, 3, generator=generator, dtype=dtype),
        ),
        prompt_index=torch.arange(batch) % prompts,
        sample_index=10 + torch.arange(batch),
        group=torch.arange(batch) // 2,
        advantage=torch.linspace(-1, 0.8, batch, dtype=dtype),
        valid=torch.ones(batch, dtype=torch.bool),
    )


def gaussian_velocity(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Exact velocity field of data N(mean, std^2) per dimension.

    v(x, t) = -mean + ((t - (1 - t) std^2) / V_t) (x - (1 - t) mean), V_t = (1 - t)^2 std^2 + t^2.
    """

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, *(1,) * (x_t.ndim - 1))
        variance = (1 - t) ** 2 * std**2 + t**2
        return -mean + (t - (1 - t) * std**2) / variance * (x_t - (1 - t) * mean)

    return velocity


def affine_coefficients(sampler: Any, velocity: Callable[[Tensor, Tensor], Tensor], num_noises: int) -> Tensor:
    """What a sampler makes of (1, x_init, z_1, ..., z_n) when the velocity is affine in x: exact, no Monte Carlo.

    Rows of the batch are runs with one of the inputs set to one and the rest zero; with all zero, the constant.

    Returns:
        [n_states, 2 + num_noises] float64 coefficients of every state; the last is x_0's.
    """
    rows = 2 + num_noises
    one_hot = torch.eye(rows, dtype=torch.float64)
    drawn = iter(range(2, rows))
    noise = lambda: one_hot[:, next(drawn)].reshape(rows, 1, 1, 1)  # noqa: E731
    states = sampler(velocity, one_hot[:, 1].reshape(rows, 1, 1, 1), noise, keep_states=True).states
    states = states.reshape(-1, rows)
    constant = states[:, :1]
    return torch.cat([constant, states[:, 1:] - constant], dim=1)
