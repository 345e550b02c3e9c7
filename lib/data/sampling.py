"""Which images an epoch sees, in which order, and how much each class counts."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """As many images as there are, in an order that depends on the seed `seeds(epoch)` only: a continued training sees
    what an unbroken one would. labels: (N,); epochs count from 0 in every phase.

    instance: each image once. Otherwise they are drawn with replacement, an image of class y with the probability
    `(1 - s) / N + s / (K n_y)`, K the classes present, where the share s is
    class_balanced          1
    progressive             1 - decay^epoch, from instance- to class-balanced: Kang et al. 2020 (arXiv 1910.09217), with
                            a decay where they have epoch / epochs
    progressive_reversed    decay^epoch, from class- to instance-balanced, as SoftCAM's reference code has it
    """

    def __init__(self, labels: Tensor, seeds: Callable[[int], int], sampling: str = "instance", decay: float = 0.9):
        self.labels, self.seeds, self.sampling, self.decay, self.epoch = labels, seeds, sampling, decay, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def probabilities(self) -> Tensor:
        """Of each image in the current epoch: (N,), sum 1."""
        rest = self.decay**self.epoch
        share = {"class_balanced": 1.0, "progressive": 1 - rest, "progressive_reversed": rest}[self.sampling]
        counts = torch.bincount(self.labels).double()
        return (1 - share) / len(self) + share / ((counts > 0).sum() * counts[self.labels])

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seeds(self.epoch))
        if self.sampling == "instance":
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(torch.multinomial(self.probabilities, len(self), True, generator=generator).tolist())

    def __len__(self) -> int:
        return len(self.labels)


def class_weights(given: str | list[float] | None, labels: Tensor, classes: int) -> Tensor | None:
    """None, N / (K n_k) of each class ('balanced', and 'dynamic' at its start), or a given list, of length K."""
    if given in ("balanced", "dynamic"):
        return len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp(min=1)).float()
    if given is not None and len(given) != classes:
        raise ValueError(f"class_weights: expected {classes} values, got {given}")
    return None if given is None else torch.tensor(given)
