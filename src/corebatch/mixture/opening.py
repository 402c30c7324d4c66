"""The bytes of a file, unpacked, line by line and within bounds; and what bytes that are no text probably are.

A line, a cell or a document that is larger than the bounds below is an error that names the file: a packed file
of a few megabytes may hold a line that no memory takes.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa  # type: ignore[import-untyped]

from corebatch.errors import DataError

LARGEST_ROW = 256 * 2**20  # bytes of a line, or characters of a cell
LARGEST_DOCUMENT = 2**30  # bytes of a JSON document, which is read as a whole
AT_ONCE = 2**24
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What the unpackers raise for damaged files."""

BYTE_ORDER_MARK = codecs.BOM_UTF8
_BEGINNINGS = {
    codecs.BOM_UTF32_LE: "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8 OLD > NEW",
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    b"\x1f\x8b": "a gzip file; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; its name should end in .zst",
    b"\xfd7zXZ\x00": "an xz file; its name should end in .xz",
    b"BZh": "a bzip2 file; its name should end in .bz2",
    b"PK\x03\x04": "a ZIP file or an Excel workbook; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV (UTF-8)",
    b"PAR1": "a Parquet file; its name should end in .parquet",
    b"ARROW1": "an Arrow file; its name should end in .arrow",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; run `git lfs pull`",
    b"<!doctype": "a web page, perhaps an error of the server that it was loaded from",
    b"<html": "a web page, perhaps an error of the server that it was loaded from",
    b"<?xml": "XML, perhaps an error of the server that it was loaded from",
}


def _open_zst(path: Path) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")))


OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}
"""The end of a packed file's name -> how its content is read."""


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked as its name says."""
    opener = OPENERS.get(path.suffix.lower())
    return cast(IO[bytes], opener(path)) if opener else path.open("rb")


def numbered_lines(path: Path, label: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes with the line end) of every line; a byte order mark of UTF-8 is taken off. Raises
    DataError: the file cannot be read or unpacked, is of another kind than its name says, or has a line of more than
    LARGEST_ROW bytes."""
    number = 0
    try:
        with open_bytes(path) as stream:
            while line := stream.readline(LARGEST_ROW + 1):
                number += 1
                if len(line) > LARGEST_ROW:
                    raise DataError(f"{label}, line {number}: should have at most {LARGEST_ROW:,} bytes. Found more.")
                if number == 1:
                    check_beginning(line, label)
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield number, line
    except UNREADABLE as error:
        raise DataError(f"{label}, after line {number}: cannot be read: {error}.") from error


def whole_content(path: Path, label: str) -> bytes:
    """All bytes of a file, without byte order mark and outer blanks. Raises DataError: it cannot be read or unpacked,
    or has more than LARGEST_DOCUMENT bytes."""
    content = bytearray()
    try:
        with open_bytes(path) as stream:
            while block := stream.read(AT_ONCE):
                content += block
                if len(content) > LARGEST_DOCUMENT:
                    raise DataError(
                        f"{label}: a JSON document is read as a whole and should have at most {LARGEST_DOCUMENT:,} "
                        "bytes. Found more: write it as JSON lines (.jsonl), one row a line."
                    )
    except UNREADABLE as error:
        raise DataError(f"{label}: cannot be read: {error}.") from error
    check_beginning(bytes(content[:64]), label)
    return bytes(content).removeprefix(BYTE_ORDER_MARK).strip()


def decoded(line: bytes, where: str) -> str:
    """The line's text. Raises DataError: it is not UTF-8; says what it may be instead."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8: {error.reason} at byte {error.start}. {_encoding(error)}") from error


def check_beginning(start: bytes, label: str) -> None:
    """Raises DataError if a file of text begins as other kinds of files do."""
    for mark, kind in _BEGINNINGS.items():
        if start.startswith(mark) or (mark.startswith(b"<") and start.lstrip().lower().startswith(mark)):
            raise DataError(f"{label}: should be text in UTF-8. Found {kind}.")
    if b"\0" in start:
        raise DataError(
            f"{label}, line 1: should be text in UTF-8. Found bytes of zero, as in UTF-16 text or in a binary file; "
            "convert it, for instance: iconv -f UTF-16LE -t UTF-8 OLD > NEW."
        )


def instead(path: Path) -> str:
    """What a file seems to be whose kind its name states wrongly, as a sentence; "" if that cannot be told."""
    with path.open("rb") as stream:
        start = stream.read(64)
    found = [kind for mark, kind in _BEGINNINGS.items() if start.lstrip().lower().startswith(mark.lower())]
    return f" Found {found[0]}." if found else ""


def _encoding(error: UnicodeDecodeError) -> str:
    line, start = error.object, error.start
    if start + 4 > len(line) and error.reason == "unexpected end of data":
        return "The file ends within a character: it was probably cut."
    around = line[max(start - 12, 0) : start + 13].decode("cp1252", errors="replace").strip()
    return (
        f"As cp1252 it would read {around!r}: if that is right, convert the file (iconv -f CP1252 -t UTF-8 OLD > "
        "NEW); else it is probably in latin-1 or a national encoding."
    )
