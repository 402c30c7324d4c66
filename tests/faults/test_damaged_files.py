"""Files of every kind with bytes changed, cut out and put in: read, or refused by name; never a traceback."""

import bz2
import gzip
import json
import lzma
import random

import datasets
import pyarrow as pa
import pytest

from corebatch.errors import DataError
from corebatch.mixture import DatasetSpec
from corebatch.mixture.reading import read_parts

ROWS = [{"prompt": f"what is {i}? ä", "completion": f"the answer {i}"} for i in range(20)]
PIECES = [b"{", b"}", b"[", b"]", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"null", b"1e999", b"NaN",
          b"\\ud800", b"[[[", b"9" * 4400, b"\t", b"\xc3", b'"prompt": 1, ', b"\xff\xfe", b"\x1f\x8b"]  # fmt: skip
TRIES = 60  # of each kind


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zst}
TEXTS = {
    ".jsonl": "\n".join(map(json.dumps, ROWS)),
    ".json": json.dumps(ROWS),
    ".csv": "prompt,completion\n" + "\n".join('"{}",{}'.format(*row.values()) for row in ROWS),
    ".tsv": "prompt\tcompletion\n" + "\n".join("{}\t{}".format(*row.values()) for row in ROWS),
}
KINDS = [text + packed for text in TEXTS for packed in PACKERS] + [".parquet", ".arrow"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(folder / "rows.parquet")
    table.save_to_disk(folder / "saved")
    arrow = next((folder / "saved").glob("*.arrow"))
    return {".parquet": (folder / "rows.parquet").read_bytes(), ".arrow": arrow.read_bytes()}


def damaged(content, generator):
    """The bytes after one to four changes."""
    content = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at, until = sorted(generator.randrange(len(content) + 1) for _ in range(2))
        kind = generator.randrange(5)
        if kind == 0:
            del content[until:]
        elif kind == 1 and at < len(content):
            content[at] = generator.randrange(256)
        elif kind == 2:
            content[at:at] = generator.choice(PIECES)
        elif kind == 3:
            del content[at : min(until, at + 30)]
        else:
            content += generator.choice(PIECES) * 2
    return bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path, tables, kind):
    generator = random.Random(kind)
    text, _, packed = kind[1:].partition(".")
    path, said = tmp_path / f"rows{kind}", []
    for number in range(TRIES):
        if f".{text}" in tables:
            path.write_bytes(damaged(tables[kind], generator))
        elif packed and number % 2:  # what is inside is damaged
            path.write_bytes(PACKERS[f".{packed}"](damaged(TEXTS[f".{text}"].encode(), generator)))
        else:
            pack = PACKERS[f".{packed}" if packed else ""]
            path.write_bytes(damaged(pack(TEXTS[f".{text}"].encode()), generator))
        split = "train[2:5]" if number % 3 == 0 else None
        try:
            for part in read_parts(DatasetSpec(str(path), split=split)):
                for _ in part.rows():
                    pass
        except DataError as error:
            said.append(str(error))
    assert all(path.name in message for message in said)
    assert said
