"""Methods that choose once, as their papers and official code have them, one row after the other."""

import itertools
import math
import random as randomness
import re
import string
from collections import Counter, deque

import numpy as np


def cosine(a, b):
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def falling(similarities):
    """Rows from the most similar to the least; what is equal but for rounding ties, and ties go to the smaller row."""
    rounded = [np.float32(round(value * 2**30) / 2**30) for value in similarities]
    return sorted(range(len(rounded)), key=lambda row: (-rounded[row], row))


def round_robin(similarities, budget):
    """RDS+ (arXiv 2503.01807, algorithm 1, and `top-max` of its code): lists that are popped in turn, into a set."""
    lists = [deque(falling(query)) for query in similarities]
    chosen = []
    while len(chosen) < budget:
        for rows in lists:
            row = rows.popleft()
            if row not in chosen:
                chosen.append(row)
            if len(chosen) >= budget:
                break
    return chosen


def simcore(similarities, budget, stop, patience):
    """`greedy` of SimCore's util/sampling.py: the sets of its rounds, and whether it stopped."""
    queues = [deque(falling(center)) for center in similarities]
    chosen, rounds, flag, threshold = set(), [], 1, -math.inf
    while len(chosen) < budget:
        taken, value = [], 0.0
        for center, queue in enumerate(queues):
            while (row := queue.popleft()) in chosen:
                pass
            taken.append(row)
            value += similarities[center][row] / len(queues)
        if stop is not None and flag == patience:
            threshold = stop * value
        flag += 1
        if value < threshold:
            return rounds, True
        rounds.append(set(taken))
        chosen |= rounds[-1]
    return rounds, False


def bm25(documents, query, k1=1.5, b=0.75):
    """Lucene's variant, for lists of words: the score of each document."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in query:
            holding = sum(word in other for other in documents)
            if holding:
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def pieces(text, ngram=13):
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    plain = re.sub(r"\s+", " ", plain).strip()
    return {plain[i : i + ngram] for i in range(max(1, len(plain) - ngram + 1))}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def first_of_near(order, near):
    """Rows in order, each kept unless it is near to a kept one: what each repeats, or None."""
    kept, repeats = [], {}
    for row in order:
        repeats[row] = next((other for other in kept if near(other, row)), None)
        if repeats[row] is None:
            kept.append(row)
    return repeats


def greedy_start(costs, budget):
    """`greedy` of GORACS's ITRA.py; but where no row lowers the cost it begins anew."""
    rows, columns = costs.shape
    serving, chosen, least = len(set(costs.argmin(axis=0))), [], [1.0] * columns
    while True:
        if len(chosen) >= budget:
            used = {chosen[place] for place in costs[chosen].argmin(axis=0)}
            if serving <= budget or len(used) >= budget:
                return [row for row in chosen if serving <= budget or row in used]
        gains = {row: sum(np.minimum(costs[row] - least, 0)) for row in range(rows) if row not in chosen}
        if min(gains.values()) > -1e-12:
            least = [1.0] * columns
            continue
        chosen.append(min(gains, key=lambda row: (round(gains[row], 12), row)))
        least = np.minimum(least, costs[chosen[-1]])


def transport(costs):
    """The optimal-transport distance between uniform distributions of M and V points, where M divides V: the best of
    all ways to give V / M of the columns to each row."""
    rows, columns = costs.shape
    owners = sorted(list(range(rows)) * (columns // rows))
    return min(sum(costs[row][v] for v, row in enumerate(way)) / columns for way in set(itertools.permutations(owners)))


def added(excess, count):
    """max_y mean_v min(excess_v - y, 0) + y / M, over all y at which the slope changes."""
    return max(sum(min(e - y, 0) for e in excess) / len(excess) + y / count for y in excess)


def edited(text, seed):
    """The text with one word changed."""
    dice = randomness.Random(seed)
    words = text.split()
    words[dice.randrange(len(words))] = f"other{dice.random()}"
    return " ".join(words)
