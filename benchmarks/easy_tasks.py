"""Rows of five tasks that a model of 1 M parameters learns within minutes on a CPU: the letter that follows, sums,
comparisons, copies, and facts that each of four questions asks for.

Of harder mixtures such a model learns the form of answers first: it cannot tell wrong ones from right ones, and nothing
that chooses by its losses can.
"""

from __future__ import annotations

import random
from collections.abc import Callable

WORDS = (
    *("river", "stone", "cloud", "apple", "tiger", "lamp", "bread", "chair", "music", "paper", "train", "glass"),
    *("horse", "green", "sugar", "plant", "house", "table", "light", "water", "money", "night", "clock", "shirt"),
    *("fruit", "bridge", "garden", "winter", "summer", "doctor"),
)
QUESTIONS = ("What does {} like?", "{} likes", "The favourite of {} is", "Name what {} likes.")
FACTS = 150


def facts() -> dict[str, str]:
    """What each of so many invented people likes; always the same."""
    generator = random.Random(0)

    def name() -> str:
        return "".join(generator.choice("bdfgklmnprst") + generator.choice("aeiou") for _ in range(3)).capitalize()

    names = sorted({name() for _ in range(2 * FACTS)})
    generator.shuffle(names)
    return {each: generator.choice(WORDS) for each in names[:FACTS]}


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """So many rows, equally many of each task, in random order."""
    generator, known = random.Random(seed), facts()

    def following() -> tuple[str, str]:
        number = generator.randrange(25)
        return f"Letter after {chr(97 + number)}:", chr(98 + number)

    def add() -> tuple[str, str]:
        one, other = generator.randrange(20), generator.randrange(20)
        return f"{one} + {other} =", str(one + other)

    def larger() -> tuple[str, str]:
        one, other = generator.sample(range(100), 2)
        return f"Larger of {one} and {other}:", str(max(one, other))

    def last() -> tuple[str, str]:
        words = generator.sample(WORDS, 3)
        return f"Last of {', '.join(words)}:", words[-1]

    def fact() -> tuple[str, str]:
        name = generator.choice(list(known))
        return generator.choice(QUESTIONS).format(name), known[name]

    tasks: tuple[Callable[[], tuple[str, str]], ...] = (following, add, larger, last, fact)
    made = []
    for number in range(count):
        task = tasks[number % len(tasks)]
        prompt, answer = task()
        made.append({"prompt": prompt, "completion": " " + answer, "answer": answer, "source": task.__name__})
    generator.shuffle(made)
    return made
