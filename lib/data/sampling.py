"""Which images an epoch sees, in which order, and how much each class counts."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """As many images as labels (N,), in an order that depends on the seed `seeds(epoch)` only, interrupted or not.
    instance: each image once. Otherwise they are drawn with replacement, an image of class y with the probability
    `(1 - s) / N + s / (K n_y)`, K the classes present, s = 1 for class_balanced, `1 - decay^epoch` for progressive
    (Kang et al. 2020: epoch / epochs) and `decay^epoch` for progressive_reversed, as in SoftCAM's code.
    """

    def __init__(self, labels: Tensor, seeds: Callable[[int], int], sampling: str = "instance", decay: float = 0.9):
        self.labels, self.seeds, self.sampling, self.decay, self.epoch = labels, seeds, sampling, decay, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator, n = torch.Generator().manual_seed(self.seeds(self.epoch)), len(self)
        if self.sampling == "instance":
            return iter(torch.randperm(n, generator=generator).tolist())
        rest, counts = self.decay**self.epoch, torch.bincount(self.labels).double()
        share = {"class_balanced": 1.0, "progressive": 1 - rest, "progressive_reversed": rest}[self.sampling]
        probabilities = (1 - share) / n + share / ((counts > 0).sum() * counts[self.labels])
        return iter(torch.multinomial(probabilities, n, True, generator=generator).tolist())

    def __len__(self) -> int:
        return len(self.labels)


def class_weights(given: str | list[float] | None, labels: Tensor, classes: int) -> Tensor | None:
    """None, N / (K n_k) of each class ('balanced', and 'dynamic' at its start), or a given list, of length K."""
    if given in ("balanced", "dynamic"):
        return len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp(min=1)).float()
    if given is not None and len(given) != classes:
        raise ValueError(f"class_weights: expected {classes} values, got {given}")
    return None if given is None else torch.tensor(given)
