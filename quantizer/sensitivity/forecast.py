"""The loss of a quantized model before it is measured, and formats chosen by it.

To second order the mean loss of a layer whose weight changes by dW rises by 1/2 of the mean over
positions of (d_s^T dW x_s)^2 (`fisher.change_losses`), and the rises of layers are added up. Beyond
dNLL = 0.35 the true loss is higher. So a budget can be spent where it saves most.
"""

from collections.abc import Mapping
from itertools import combinations, pairwise
from math import exp
from typing import NamedTuple

from perfmodel.errors import UsageError

QUADRATIC_LIMIT = 0.35  # dNLL; above it, forecasts are too low


class Choice(NamedTuple):
    """One way to store a layer."""

    cost: float  # in the unit of the budget: bytes, or seconds on a device
    loss: float  # forecast dNLL


def forecast_perplexity(perplexity: float, loss: float) -> float:
    """Perplexity after a rise of the loss by that many nats per token."""
    return perplexity * exp(loss)


def beyond_quadratic(loss: float) -> bool:
    """Whether the forecast is too large to be trusted."""
    return loss > QUADRATIC_LIMIT


def allocate(
    choices: Mapping[str, Mapping[str, tuple[float, float]]], budget: float
) -> dict[str, str]:
    """The format of each layer, of little forecast loss within the budget.

    choices: per layer and format name its cost, in the unit of the budget, and loss. Every layer
    starts at its cheapest format and is raised along its lower convex hull, by falling loss saved
    per cost; a step that no longer fits is left out. Optimal for what it spends, but for the last
    step that did not fit (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of
    quantizers", 1988).

    Raises: UsageError if the cheapest formats exceed the budget, or a layer has no format.
    """
    hulls = {layer: _hull(layer, formats) for layer, formats in choices.items()}
    taken = {layer: hull[0][0] for layer, hull in hulls.items()}
    spent = sum(hull[0][1].cost for hull in hulls.values())
    if spent > budget:
        raise UsageError(f"the cheapest formats take {spent:g}, the budget is {budget:g}")
    steps = [
        (_slope(a[1], b[1]), layer, number, b[0], b[1].cost - a[1].cost)
        for layer, hull in hulls.items()
        for number, (a, b) in enumerate(pairwise(hull))
    ]
    stuck = set()
    for _, layer, _, name, more in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        if layer in stuck:
            continue
        if spent + more > budget:
            stuck.add(layer)
            continue
        spent += more
        taken[layer] = name
    return taken


def allocations(
    choices: Mapping[str, Mapping[str, tuple[float, float]]], budget: float
) -> list[dict[str, str]]:
    """What `allocate` makes of each range of formats, neighbours in size, that fits the budget.

    The widest range has the least forecast loss. But the coarser a format, the more its forecast
    falls short, and the more layers it is given wrongly; single formats are among the ranges.
    choices: the same formats for every layer.
    """
    formats = {name for layer in choices.values() for name in layer}
    sizes = {name: sum(layer[name][0] for layer in choices.values()) for name in formats}
    order = sorted(formats, key=lambda name: (sizes[name], name))
    found: list[dict[str, str]] = []
    for low, high in combinations(range(len(order) + 1), 2):
        some = order[low:high]
        ladder = {layer: {n: own[n] for n in some} for layer, own in choices.items()}
        least = sum(min(cost for cost, _ in own.values()) for own in ladder.values())
        if least <= budget and (taken := allocate(ladder, budget)) not in found:
            found.append(taken)
    return found


def _hull(layer: str, formats: Mapping[str, tuple[float, float]]) -> list[tuple[str, Choice]]:
    """Formats on the lower convex hull of (cost, loss), by rising cost and falling loss."""
    if not formats:
        raise UsageError(f"layer {layer} has no format to choose from")
    points = sorted(
        ((name, Choice(*choice)) for name, choice in formats.items()),
        key=lambda point: (*point[1], point[0]),
    )
    hull = points[:1]
    for point in points[1:]:
        if point[1].loss >= hull[-1][1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2][1], hull[-1][1]) <= _slope(hull[-1][1], point[1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Choice, b: Choice) -> float:
    """Loss saved per cost; b costs more, as it is smaller in loss and sorted later."""
    return (a.loss - b.loss) / (b.cost - a.cost)
