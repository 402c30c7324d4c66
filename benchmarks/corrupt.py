"""Gives a share of a data set's rows the answers of other rows of the same source.

    python benchmarks/corrupt.py train.jsonl --output dirty.jsonl --share 0.4

Of each source so many rows, drawn at random, get the answer (`completion`, and `answer` where there is one) of
another row of that source whose text is another. All else, and the order, stay as they are. Beside it
dirty.corrupted.jsonl says which rows those are, counted from 0, and whose answers they have; no training reads it. The
same seed gives the same rows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

COPIED = ("completion", "answer")


def corrupted(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """The rows with wrong answers, and a line for each row that has one.

    Raises:
        ValueError: the share is not in [0, 1], or all rows of a source have one answer.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share should be a number from 0 to 1. Found {share}.")
    generator, members = random.Random(seed), defaultdict(list)
    for number, row in enumerate(rows):
        members[row.get("source")].append(number)
    made, marks = [dict(row) for row in rows], []
    for source, own in members.items():
        wrong = generator.sample(own, round(share * len(own)))
        if wrong and len({rows[number]["completion"] for number in own}) < 2:
            raise ValueError(f"Rows of a source should have different answers. Found one in all of {source!r}.")
        for number in wrong:
            other = number
            while rows[other]["completion"] == rows[number]["completion"]:
                other = generator.choice(own)
            made[number] |= {key: rows[other][key] for key in COPIED if key in rows[other]}
            marks.append({"row": number, "source": source, "answer_of": other})
    return made, sorted(marks, key=lambda mark: mark["row"])


def corrupt(source: Path, output: Path, share: float, seed: int = 0) -> int:
    """Writes both files; how many rows have wrong answers."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    made, marks = corrupted(rows, share, seed)
    for path, lines in ((output, made), (output.with_suffix(".corrupted.jsonl"), marks)):
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(marks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSON lines with prompt, completion and source")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.4, help="of each source's rows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count = corrupt(args.source, args.output, args.share, args.seed)
    print(f"{count} rows of {args.output} have the answer of another row.")


if __name__ == "__main__":
    main()
