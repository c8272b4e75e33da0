"""Optimisation with checkpoints: what a method learns is saved as it goes, and resumed if it is cut off."""

import logging
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from lensbench.utils.cache import atomic_file
from lensbench.utils.foreign import reading

LOG = logging.getLogger("lensbench")
SAVE_EVERY_SECONDS = 60.0
STEP = "step"
# Of a descent: steps until the rate is reached, and the longest gradient.
WARM_UP, CLIP = 10, 1.0
# The mean loss is logged every so many steps.
LOG_EVERY = 10


class Resumable(ABC):
    """Something that is optimised step by step; what is random in a step is drawn from the step's number."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps so far have changed."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from such a state."""


def optimizer_moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state: one tensor for each parameter's number and name, such as `0.exp_avg`."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, kept in state.items() for name, value in kept.items()}


def restore_moments(optimiser: torch.optim.Optimizer, gathered: Mapping[str, Tensor]) -> None:
    """Resume from what `optimizer_moments` returned."""
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in gathered.items():
        index, _, name = key.partition(".")
        kept.setdefault(int(index), {})[name] = value.cpu() if name == "step" else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": kept})


class Descent(Resumable):
    """AdamW on some weights, its rate rising for a few steps and then falling to zero; gradients are clipped.

    Args:
        weights: what is learned, by name.
        rate: the highest learning rate.
        steps: how many there are.
        decay: of the weights.
        clip: how long a gradient may be.
        cosine: let the rate fall as a cosine does, in place of a line.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        rate: float,
        steps: int,
        *,
        decay: float = 0.0,
        clip: float = CLIP,
        cosine: bool = False,
    ) -> None:
        self.weights = weights
        self._rate, self._steps, self._clip, self._cosine = rate, steps, clip, cosine
        self._adam = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=decay)
        self.losses: list[float] = []

    def step(self, number: int, losses: Float[Tensor, " row"]) -> None:
        """Go one step down the mean of the losses."""
        self._adam.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self._clip)
        done = number / self._steps
        falling = (1 + math.cos(math.pi * done)) / 2 if self._cosine else 1 - done
        self._adam.param_groups[0]["lr"] = self._rate * min((number + 1) / WARM_UP, falling)
        self._adam.step()
        self.losses.append(float(losses.detach().mean()))

    def descend(self, learning: "TrainingSchedule", losses: Callable[[int], Float[Tensor, " row"]]) -> dict[str, float]:
        """Make the remaining steps; return the mean loss of the first steps, and of the last."""
        for step in learning.steps(self._steps, self):
            with torch.enable_grad():
                self.step(step, losses(step))
            if step % LOG_EVERY == LOG_EVERY - 1:
                LOG.info("step %d of %d: loss %.3f", step + 1, self._steps, self.mean_loss(slice(-LOG_EVERY, None)))
        return {"loss_first": self.mean_loss(slice(LOG_EVERY)), "loss_last": self.mean_loss(slice(-LOG_EVERY, None))}

    def mean_loss(self, steps: slice) -> float:
        """The mean loss of some steps, to four places."""
        some = self.losses[steps]
        return round(sum(some) / len(some), 4)

    def state(self) -> dict[str, Tensor]:
        """Weights, moments, and the losses so far."""
        kept = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        kept |= {f"weight.{name}": weight for name, weight in self.weights.items()}
        return kept | {f"moment.{name}": value for name, value in optimizer_moments(self._adam).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from such a state."""
        self.losses = state["losses"].tolist()
        for name, weight in self.weights.items():
            weight.data.copy_(state[f"weight.{name}"])
        moments = {key.removeprefix("moment."): value for key, value in state.items() if key.startswith("moment.")}
        restore_moments(self._adam, moments)


def draw_positions(
    kept: Float[Tensor, "layer position d_model"], count: int, seed: int, step: int
) -> Float[Tensor, "layer drawn d_model"]:
    """Return the positions that a step learns from, drawn by its number."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    places = torch.randint(kept.shape[1], (count,), generator=generator)
    return kept[:, places.to(kept.device)]


class TrainingSchedule:
    """The stages and steps of one method's learning, with checkpoints.

    Args:
        folder: where checkpoints are kept; None keeps none.
        device: where restored tensors go.
    """

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._saved = time.monotonic()

    def stage(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what a stage computes, or its checkpoint; one is saved only where the stage takes a minute."""
        start = time.monotonic()
        if (saved := self._load(name)) is not None:
            return saved
        values = compute()
        if time.monotonic() - start > SAVE_EVERY_SECONDS:
            self._save(name, values)
        return values

    def steps(self, total: int, learner: Resumable) -> Iterator[int]:
        """Yield the numbers of the remaining steps, and save the learner's state once a minute."""
        first = 0
        if (saved := self._load("steps")) is not None:
            first = int(saved.pop(STEP))
            learner.restore(saved)
        for step in range(first, total):
            yield step
            if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
                self._save("steps", {**learner.state(), STEP: torch.tensor(step + 1)})

    def _load(self, name: str) -> dict[str, Tensor] | None:
        if self._folder is None or not (self._folder / f"{name}.safetensors").exists():
            return None
        file = self._folder / f"{name}.safetensors"
        with reading(file, f"delete {self._folder} to begin again"):
            return {key: value.to(self._device) for key, value in load_file(file).items()}

    def _save(self, name: str, values: Mapping[str, Tensor]) -> None:
        self._saved = time.monotonic()
        if self._folder is None:
            return
        with atomic_file(self._folder / f"{name}.safetensors") as file:
            file.write(save({key: value.detach().contiguous().cpu() for key, value in values.items()}))


@contextmanager
def checkpoint_folder(out: Path, digest: str) -> Iterator[Path]:
    """Name a folder for checkpoints beside `out`, which is to be written inside; it is removed at the end.

    Its name holds the digest of all that the learning depends on, so that nothing else is resumed.
    """
    folder = out.with_name(f".{out.name}.{digest}.begun")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
