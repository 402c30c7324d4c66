"""The online methods' equations in plain Python, one source after the other."""

import math

import numpy as np


def normalised(values):
    return [value / sum(values) for value in values]


def doremi(references, steps, eta, c):
    """Algorithm 1 of arXiv 2305.10429 with excesses of sources; the shares after each step, and their mean."""
    count = len(references)
    shares, excess, found = [1 / count] * count, [math.nan] * count, []
    for losses in steps:
        for s in range(count):
            if not math.isnan(losses[s]):
                excess[s] = max(losses[s] - references[s], 0)
        known = [each for each in excess if not math.isnan(each)]
        filled = [sum(known) / len(known) if math.isnan(each) else each for each in excess]
        moved = normalised([shares[s] * math.exp(eta * filled[s]) for s in range(count)])
        shares = [(1 - c) * each + c / count for each in moved]
        found.append(shares)
    return found, [sum(column) / len(found) for column in zip(*found, strict=True)]


def odm(steps, alpha, count):
    """Algorithm 1 of arXiv 2312.02406, every source that was trained being an arm that was pulled."""
    shares, rewards, before, found = [1 / count] * count, [0.0] * count, 1 / count, []
    for t, losses in enumerate(steps, start=1):
        for s in range(count):
            if not math.isnan(losses[s]):
                rewards[s] = alpha * rewards[s] + (1 - alpha) * losses[s] / shares[s]
        now = min(1 / count, math.sqrt(math.log(count) / (count * t)))
        powers = [math.exp(before * reward) for reward in rewards]
        shares = [(1 - count * now) * power / sum(powers) + now for power in powers]
        before = now
        found.append(shares)
    return found


def skill_it(graph, periods, eta, window, targets):
    """Algorithm 1 of arXiv 2307.14430: the shares before the first period and after each, of the periods' losses."""
    count = len(graph)

    def shares(sums):
        return normalised([math.exp(eta * sum(graph[i][j] * sums[j] for j in targets)) for i in range(count)])

    found = [shares([1.0] * count)]
    for t in range(len(periods)):
        last = periods[max(0, t + 1 - window) : t + 1]
        found.append(shares([sum(losses[j] for losses in last) for j in range(count)]))
    return found


def doge(batches, eta, most, targets):
    """Algorithm 1 of arXiv 2310.15393. batches: of each step, for each source, (gradients [n, P], tokens [n])."""
    count = len(batches[0])
    shares, found = [1 / count] * count, []
    for sources in batches:
        means = [rows.sum(0) / max(tokens.sum(), 1) for rows, tokens in sources]
        scale = np.mean([mean @ mean for mean, (rows, _) in zip(means, sources, strict=True) if len(rows)])
        aligned = []
        for i, (rows, tokens) in enumerate(sources):
            total = 0.0
            for j in targets:
                if i != j:
                    total += means[i] @ means[j]
                elif len(rows) > 1:  # the mean over pairs of different rows
                    pairs = [rows[a] @ rows[b] for a in range(len(rows)) for b in range(len(rows)) if a != b]
                    total += np.mean(pairs) / tokens.mean() ** 2
            aligned.append(min(max(total / scale, 0), most))
        shares = normalised([shares[i] * math.exp(eta * aligned[i]) for i in range(count)])
        found.append(shares)
    return found


def aioli(loss_of, count, orders, *, eta, period, sweeps, sweep_steps, focus, steps, ema=None):
    """Algorithms 1 and 2 of arXiv 2411.05735, as a program that trains and measures.

    Args:
        loss_of: the held-out losses, of the list of shares that were trained.
        orders: orders[round][sweep] is the order of sources.

    Returns:
        The shares that each step is trained by.
    """
    shares, trained, kept = np.full(count, 1 / count), [np.full(count, 1 / count)], None
    for order in orders:
        falls, before = np.zeros((count, count)), loss_of(trained)
        mixtures = np.full((count, count), (1 - focus) / (count - 1))
        np.fill_diagonal(mixtures, focus)
        for sweep in range(sweeps):
            for source in order[sweep]:
                trained += [mixtures[source]] * sweep_steps
                after = loss_of(trained)
                falls[:, source] += (before - after) / sweeps
                before = after
        matrix = np.stack([np.linalg.solve(mixtures, row) for row in falls])
        matrix -= min(0, matrix.min())
        matrix /= matrix.sum()
        kept = matrix if kept is None or ema is None else ema * kept + (1 - ema) * matrix
        base = shares if ema is None else np.full(count, 1 / count)
        shares = np.array(normalised(base * np.exp(eta * kept.sum(0))))
        while len(trained) % period:
            trained.append(shares)
    return trained[:steps]
