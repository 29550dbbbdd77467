"""Weighted k-means of vectors: many small problems at once, each point with a metric of its own.

Points of one table are the vectors of r rows in V places; place v has the (d, d) metric D_v, and
each point a weight m. The codebook minimises sum m (x - c)^T D (x - c): nearest entries (E), which
m does not change, then c = (sum m D)^-1 sum m D x (M).
Source: GPTVQ, arXiv 2402.15319, section 3.2; its D is diagonal.
"""

import torch
from torch import Tensor

from quantizer.clustering.kmeans import cluster_rows

SEEDS = ("mahalanobis", "kmeans++", "exact")
AT_ONCE = 1 << 18  # distances held at a time: those that a core's cache holds


def fit_tables(
    points: Tensor,
    metric: Tensor,
    entries: int,
    *,
    seeds: str,
    rounds: int,
    weights: Tensor | None = None,
) -> Tensor:
    """(T, E, d) tables of points (T, r, V, d) under metrics (V, d, d); weights: (T, r, V) or equal.

    seeds: `mahalanobis` (evenly spaced in the distance from the mean), `kmeans++`, or `exact`, the
    global optimum of d = 1, after which there is nothing to iterate.
    """
    tables, rows, places = points.shape[:3]
    metric = metric / metric.diagonal(dim1=1, dim2=2).mean()
    weights = points.new_ones(1, 1, 1) if weights is None else weights
    weights = weights.expand(tables, rows, places)
    if seeds == "exact":
        own = (metric.flatten() * weights).reshape(tables, -1)
        found = cluster_rows(points.reshape(tables, -1), own, entries).centroids
        return found.float()[..., None]
    at_once = max(1, AT_ONCE // (rows * places * entries))
    parts = zip(points.split(at_once), weights.split(at_once), strict=True)
    return torch.cat([_fit(own, w, metric, entries, seeds, rounds) for own, w in parts])


def nearest(points: Tensor, metric: Tensor, tables: Tensor) -> Tensor:
    """(T, r, V) int64 entries nearest to points (T, r, V, d); tables (T, E, d).

    c^T D c - 2 c^T D x is one product of what is known of c (its components and their products)
    and of what is known of x and its place.
    """
    first, second = torch.triu_indices(points.shape[3], points.shape[3], device=points.device)
    squares = metric[:, first, second] * torch.where(
        first == second, 1.0, 2.0
    )  # (V, d (d + 1) / 2)
    known = torch.cat((tables, tables[..., first] * tables[..., second]), dim=2).transpose(1, 2)
    found = []
    per_row = max(1, len(tables) * tables.shape[1] * points.shape[2])
    for part in points.split(max(1, AT_ONCE // per_row), dim=1):
        pulled = (part[..., None, :] @ metric).squeeze(-2) * -2.0
        own = torch.cat((pulled, squares.expand(*part.shape[:3], -1)), dim=3)
        distances = own.flatten(1, 2) @ known  # (T, rV, E)
        found.append(distances.argmin(dim=2).unflatten(1, part.shape[1:3]))
    return torch.cat(found, dim=1)


def _fit(
    points: Tensor, weights: Tensor, metric: Tensor, entries: int, seeds: str, rounds: int
) -> Tensor:
    choose = _plus_plus if seeds == "kmeans++" else _evenly_spaced
    tables = choose(points, weights, metric, entries)
    codes = torch.empty(0, device=points.device)
    for _ in range(rounds):
        before, codes = codes, nearest(points, metric, tables)
        if torch.equal(before, codes):
            break
        tables = _means(points, weights, metric, codes, tables)
    return tables


def _means(
    points: Tensor, weights: Tensor, metric: Tensor, codes: Tensor, tables: Tensor
) -> Tensor:
    """The best entries for fixed codes; entries that nobody took stay."""
    count, entries, dim = tables.shape
    places = points.shape[2]
    table = torch.arange(count, device=codes.device)[:, None, None]
    cell = (table * entries + codes) * places + torch.arange(places, device=codes.device)
    taken = points.new_zeros(count * entries * places)
    taken.index_add_(0, cell.flatten(), weights.flatten())
    taken = taken.view(count, entries, places)
    mass = torch.einsum("tev,vab->teab", taken, metric)
    sums = points.new_zeros((count * entries * places, dim))
    sums.index_add_(0, cell.flatten(), (points * weights[..., None]).view(-1, dim))
    moment = torch.einsum("teva,vab->teb", sums.view(count, entries, places, dim), metric)
    empty = taken.sum(dim=2) == 0
    mass = torch.where(empty[..., None, None], torch.eye(dim, device=mass.device), mass)
    moment = torch.where(empty[..., None], tables, moment)
    return torch.linalg.solve(mass, moment)


def _evenly_spaced(points: Tensor, _weights: Tensor, _metric: Tensor, entries: int) -> Tensor:
    """Points at even ranks of the Mahalanobis distance from their mean."""
    flat = points.flatten(1, 2)  # (T, P, d)
    centred = flat - flat.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / flat.shape[1]
    floor = covariance.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)[:, None, None]
    covariance = covariance + 1e-6 * floor * torch.eye(flat.shape[2], device=flat.device)
    whitened = torch.linalg.solve(covariance, centred.transpose(1, 2)).transpose(1, 2)
    order = (whitened * centred).sum(dim=2).argsort(dim=1)
    ranks = torch.linspace(0, flat.shape[1] - 1, entries, device=flat.device).round().long()
    return flat.gather(1, order[:, ranks, None].expand(-1, -1, flat.shape[2])).clone()


def _plus_plus(points: Tensor, weights: Tensor, metric: Tensor, entries: int) -> Tensor:
    """k-means++: each seed is drawn with a chance in proportion to its cost under the others."""
    count, rows, places, dim = points.shape
    generator = torch.Generator(device=points.device).manual_seed(0)
    flat = points.flatten(1, 2)
    distance = torch.ones(count, rows * places, device=points.device)
    chosen = []
    for number in range(entries):
        picked = torch.multinomial(distance.clamp_min(1e-30), 1, generator=generator)
        seed = flat.gather(1, picked[..., None].expand(-1, -1, dim))  # (T, 1, d)
        change = points - seed[:, :, None]
        own = torch.einsum("trva,vab,trvb->trv", change, metric, change) * weights
        own = own.flatten(1)
        distance = own if number == 0 else torch.minimum(distance, own)
        chosen.append(seed)
    return torch.cat(chosen, dim=1)
