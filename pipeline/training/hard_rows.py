"""Losses that give less weight to rows and labels that are already predicted well: focal and asymmetric.

Both are linear in the label, so the loss of a mixed or smoothed label is the mean of the losses of its parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

TINY = 1e-8  # smallest base of (1 - p) ** gamma: for gamma below 1 the slope at 0 is infinite


def focal_choice(gamma: float, smoothing: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the focal loss of one class by softmax: -(1 - p) ** gamma * log p of the right class, mean
    over the batch.

    Lin et al. 2017, arXiv:1708.02002, without alpha. Logits (B, C); label (B,) int64, or (B, C) shares of
    each class.
    """

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        log_p = logits.float().log_softmax(dim=1)
        weighted = (1 - log_p.exp()).clamp(min=TINY) ** gamma * log_p
        return (
            -(smoothed(shares_of(label, logits.shape[1]), smoothing, logits.shape[1]) * weighted)
            .sum(dim=1)
            .mean()
        )

    return loss


def focal_decisions(gamma: float, smoothing: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the focal loss of (B, O) single decisions by sigmoid, mean over rows and columns.

    Labels (B, O) in 0..1.
    """

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        log_yes, log_no = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
        yes, no = (gamma * log_no).exp() * log_yes, (gamma * log_yes).exp() * log_no
        goal = smoothed(label.float(), smoothing, 2)
        return -(goal * yes + (1 - goal) * no).mean()

    return loss


def asymmetric(
    gamma_negative: float, gamma_positive: float, margin: float, smoothing: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119), mean over rows and columns.

    It is a focal loss with one gamma for labels that an image has and another for those it does not have. The
    probability of the latter is first lowered by `margin`. Labels (B, O) in 0..1.
    """

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        log_yes, log_no = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
        yes = (gamma_positive * log_no).exp() * log_yes
        lowered = (log_yes.exp() - margin).clamp(min=TINY)
        no = lowered**gamma_negative * (torch.log1p(-lowered) if margin else log_no)
        goal = smoothed(label.float(), smoothing, 2)
        return -(goal * yes + (1 - goal) * no).mean()

    return loss


def shares_of(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return (B, C) float32 shares of each class, for class numbers (B,) or for shares."""
    if label.ndim == 2:
        return label
    return (label[:, None] == torch.arange(num_classes, device=label.device)).float()


def smoothed(shares: torch.Tensor, smoothing: float, num_classes: int) -> torch.Tensor:
    """Return `shares` with a part spread over all classes, as torch's cross-entropy does.

    Yes and no are two classes.
    """
    return shares * (1 - smoothing) + smoothing / num_classes if smoothing else shares
