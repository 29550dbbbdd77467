"""The best entries of all codebooks of a matrix for fixed codes, under the full Hessian.

GPTVQ (arXiv 2402.15319, section 3.3) lowers tr((W - Q) H (W - Q)^T) over the entries of the
codebooks by gradient descent. The loss is quadratic in them: conjugate gradients need no learning
rate, never go up, and take one (N, K) x (K, K) product per step, as a gradient does. The normal
equations themselves are too large to write down (4-D: a thousand unknowns per 256 columns).
Tables of different rows are independent problems, solved side by side.
"""

import torch
from torch import Tensor

STEPS = 25  # as many as the paper's gradient steps
ENOUGH = 1e-8  # of the preconditioned squared residual


def update_tables(
    weight: Tensor, hessian: Tensor, entries: Tensor, scales: Tensor, tables: Tensor
) -> Tensor:
    """New (T, B, E, d) tables of an (N, K) weight.

    entries: (N, K / d) int64, which of the T B E vectors stands where; tables of other T share no
    row. scales: what multiplies it there, (N, K / d) or (1, 1).
    """
    problem = _Problem(hessian, entries, scales, tables)
    x = tables.flatten(1, 2)  # (T, BE, d)
    residual = problem.pull(weight - problem.spread(x))
    mass = problem.members()
    inverse = torch.where(mass > 0, 1 / mass, 0.0)
    direction = step = inverse * residual
    size = start = (residual * step).sum(dim=(1, 2))
    for _ in range(STEPS):
        pushed = problem.pull(problem.spread(direction))
        curvature = (direction * pushed).sum(dim=(1, 2))
        active = (size > ENOUGH * start) & (curvature > 0)
        if not bool(active.any()):
            break
        rate = torch.where(active, size / curvature, 0.0)[:, None, None]
        x, residual = x + rate * direction, residual - rate * pushed
        step = inverse * residual
        before, size = size, (residual * step).sum(dim=(1, 2))
        direction = step + torch.where(before > 0, size / before, 0.0)[:, None, None] * direction
    return x.unflatten(1, tables.shape[1:3])


class _Problem:
    """The linear maps between entries (T, BE, d) and the weights (N, K) that use them."""

    def __init__(self, hessian: Tensor, entries: Tensor, scales: Tensor, tables: Tensor) -> None:
        count, blocks, per_table, self.dim = tables.shape
        self.hessian, self.shape = hessian, (count, blocks * per_table, self.dim)
        self.entries, self.rows = entries.flatten(), len(entries)
        self.scales = scales.expand(entries.shape).reshape(-1, 1)

    def spread(self, x: Tensor) -> Tensor:
        """The (N, K) matrix of the entries' values."""
        return (x.reshape(-1, self.dim)[self.entries] * self.scales).view(self.rows, -1)

    def pull(self, change: Tensor) -> Tensor:
        """The gradient for an (N, K) change of the weight, up to its factor: sums of dW H."""
        return self._sums((change @ self.hessian).view(-1, self.dim) * self.scales)

    def members(self) -> Tensor:
        """The diagonal of the normal equations, without the products of a row's own columns."""
        diagonal = self.hessian.diagonal().clamp_min(0).view(1, -1).expand(self.rows, -1)
        return self._sums(diagonal.reshape(-1, self.dim) * self.scales.square())

    def _sums(self, values: Tensor) -> Tensor:
        out = values.new_zeros((self.shape[0] * self.shape[1], self.dim))
        return out.index_add_(0, self.entries, values).view(self.shape)
