"""What a git repository's files say of its commit and of changed files, without git.

git runs programs that a repository's own configuration names (`core.fsmonitor`, hooks, filters, helpers of remotes),
so a folder that came from elsewhere could run something by being worked in. Here files are read and nothing is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 64 * 2**20
"""Of an index, a list of references or a changed file that is read; beyond, changes count as unknown."""
SECONDS = 5.0
"""Looking for changed files may take so long, on a slow disk for instance, before they count as unknown."""
_HEX = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_REFERENCE = re.compile(r"refs/[^\s~^:?*\[\\]+")


class UnreadableError(Exception):
    """Something is not as git writes it, or takes too long."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Where a working tree's files lie.

    Attributes:
        tree: the working tree's top.
        own: its `.git`: HEAD and index; of a linked working tree a folder of its own.
        common: references and objects, which linked working trees share.
    """

    tree: Path
    own: Path
    common: Path

    @classmethod
    def around(cls, folder: Path) -> Repository | None:
        """The repository that a folder lies in; parents are not looked through beyond GIT_CEILING_DIRECTORIES."""
        ceilings = {Path(each) for each in os.environ.get("GIT_CEILING_DIRECTORIES", "").split(os.pathsep) if each}
        folder = folder.resolve()
        for tree in (folder, *folder.parents):
            if tree in ceilings and tree != folder:
                return None
            own = tree / ".git"
            if own.is_file():  # of a linked working tree or a submodule
                own = tree / _text(own).removeprefix("gitdir:").strip()
            if (own / "HEAD").is_file():
                common = own / _text(own / "commondir").strip() if (own / "commondir").is_file() else own
                return cls(tree, own, common)
        return None

    def head(self) -> str | None:
        """The commit in hexadecimal; None before the first one, and where references are kept in another form."""
        name = _text(self.own / "HEAD").strip()
        for _ in range(5):  # a reference may name another
            if _HEX.fullmatch(name):
                return name
            name = name.removeprefix("ref:").strip()
            if not _REFERENCE.fullmatch(name) or ".." in name:
                return None
            loose = next((each / name for each in (self.own, self.common) if (each / name).is_file()), None)
            found = _text(loose).strip() if loose is not None else self._packed(name)
            if found is None:
                return None
            name = found
        return None

    def _packed(self, name: str) -> str | None:
        path = self.common / "packed-refs"
        for line in _text(path).splitlines() if path.is_file() else []:
            commit, _, reference = line.partition(" ")
            if reference == name:
                return commit
        return None

    def changed(self) -> bool | None:
        """Whether tracked files differ from HEAD: those on the disk from the index, or the index from the commit; None
        where that cannot be told. New files are no changes."""
        try:
            index = Index.read(self.own / "index")
            until = time.monotonic() + SECONDS
            for entry in index.entries:
                if time.monotonic() > until:
                    return None
                if entry.differs(self.tree, index.hash_name):
                    return True
            if index.staged_tree is None:
                return None
            committed = self._tree_of(self.head())
            return None if committed is None else committed != index.staged_tree
        except (OSError, UnreadableError, StopIteration, IndexError):  # of what git did not write
            return None

    def _tree_of(self, commit: str | None) -> str | None:
        """The tree of a commit; None if the commit is not found, or is packed as a difference to another object."""
        if commit is None:
            return None
        objects = self.common / "objects"
        loose = objects / commit[:2] / commit[2:]
        if loose.is_file():
            found = re.match(rb"commit \d+\0tree ([0-9a-f]+)\n", _inflated(_bytes(loose)))
            return found.group(1).decode() if found else None
        for index in objects.glob("pack/pack-*.idx"):
            at = _place_in_pack(_bytes(index), bytes.fromhex(commit))
            if at is not None:
                return _packed_tree(index.with_suffix(".pack"), at)
        return None


def _place_in_pack(index: bytes, name: bytes) -> int | None:
    """Where an object starts in its pack (gitformat-pack, version 2 of the index), or None."""
    if index[:8] != b"\xfftOc\0\0\0\2":
        return None
    counts = [int.from_bytes(index[8 + 4 * i : 12 + 4 * i], "big") for i in range(256)]
    low, high, total, width = counts[name[0] - 1] if name[0] else 0, counts[name[0]], counts[255], len(name)
    names = [index[1032 + width * i : 1032 + width * (i + 1)] for i in range(low, high)]
    if name not in names:
        return None
    offsets = 1032 + total * (width + 4)
    at = offsets + 4 * (low + names.index(name))
    found = int.from_bytes(index[at : at + 4], "big")
    return found if found < 2**31 else None  # beyond 2 GB


def _packed_tree(pack: Path, at: int) -> str | None:
    with open(pack, "rb") as file:
        file.seek(at)
        data = file.read(2**16)
    if data[0] >> 4 & 7 != 1:  # no commit, or one that is written as a difference
        return None
    start = next(i for i, byte in enumerate(data) if byte < 128) + 1
    found = re.match(rb"tree ([0-9a-f]+)\n", _inflated(data[start:]))
    return found.group(1).decode() if found else None


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 2**16)
    except zlib.error as error:
        raise UnreadableError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked file as the index has it: size and time on disk when it was last compared, and its content's name."""

    path: bytes
    mode: int
    size: int
    mtime: tuple[int, int]
    content: str
    conflict: bool

    def differs(self, tree: Path, hash_name: str) -> bool:
        """Whether the file on the disk is another; it is read only if its time has changed and its size has not."""
        if stat.S_IFMT(self.mode) == 0o160000:  # a submodule, which has a repository of its own
            return False
        path = os.path.join(os.fsencode(tree), self.path)
        try:
            found = os.lstat(path)
        except OSError:
            return True
        if self.conflict or stat.S_IFMT(found.st_mode) != stat.S_IFMT(self.mode):
            return True
        if (found.st_size & 0xFFFFFFFF, divmod(found.st_mtime_ns, 10**9)) == (self.size, self.mtime):
            return False
        content = os.readlink(path) if stat.S_ISLNK(found.st_mode) else _bytes(Path(os.fsdecode(path)))
        head = b"blob %d\0" % len(content)
        return hashlib.new(hash_name, head + content, usedforsecurity=False).hexdigest() != self.content


@dataclass(frozen=True, slots=True)
class Index:
    """git's list of tracked files (gitformat-index, versions 2 to 4).

    Attributes:
        staged_tree: the tree that all of it makes, where git has noted it since the last change.
        hash_name: of the names of objects.
    """

    entries: tuple[Entry, ...]
    staged_tree: str | None
    hash_name: str

    @classmethod
    def read(cls, path: Path) -> Index:
        """Raises UnreadableError for what is not an index, and for one that is split over files."""
        data = _bytes(path)
        version, count = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
        if data[:4] != b"DIRC" or version not in (2, 3, 4):
            raise UnreadableError(f"{path} should be an index of version 2 to 4.")
        for hash_name, width in (("sha1", 20), ("sha256", 32)):
            if hashlib.new(hash_name, data[:-width], usedforsecurity=False).digest() == data[-width:]:
                break
        else:
            raise UnreadableError(f"{path} should end with the hash of its content.")
        try:
            entries, at = _entries(data, version, count, width)
            return cls(entries, _staged_tree(dict(_extensions(data, at, width)), width), hash_name)
        except (IndexError, ValueError) as error:
            raise UnreadableError(f"{path} is cut off: {error}") from error

    def tracks(self, path: str) -> bool:
        """Whether a path, from the working tree's top, is tracked."""
        return any(entry.path == os.fsencode(path) for entry in self.entries)


def _entries(data: bytes, version: int, count: int, width: int) -> tuple[tuple[Entry, ...], int]:
    found, at, before = [], 12, b""
    for _ in range(count):
        words = [int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "big") for i in range(10)]
        flags = int.from_bytes(data[at + 40 + width : at + 42 + width], "big")
        name = at + 42 + width + (2 if flags & 0x4000 else 0)
        if version == 4:  # only how much of the name before is kept, and what follows
            cut, name = _number(data, name)
            before = before[: len(before) - cut]
        else:
            before = b""
        end = data.index(b"\0", name)
        before += data[name:end]
        content = data[at + 40 : at + 40 + width].hex()
        found.append(Entry(before, words[6], words[9], (words[2], words[3]), content, bool(flags & 0x3000)))
        at = end + 1 if version == 4 else at + (end - at + 8) // 8 * 8
    return tuple(found), at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An integer of variable width, and where it ends."""
    value = data[at] & 127
    while data[at] & 128:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 127)
    return value, at + 1


def _extensions(data: bytes, at: int, width: int) -> Iterator[tuple[bytes, bytes]]:
    while at < len(data) - width:
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size


def _staged_tree(extensions: dict[bytes, bytes], width: int) -> str | None:
    if b"link" in extensions:
        raise ValueError("it is split over two files")
    found = re.match(rb"\0(-?\d+) \d+\n", extensions.get(b"TREE", b""))
    if found is None or int(found.group(1)) < 0:  # -1: changed since
        return None
    return extensions[b"TREE"][found.end() : found.end() + width].hex()


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > MOST_BYTES:  # a pipe or a device would never end
        raise UnreadableError(f"{path} should be a file of at most {MOST_BYTES} bytes.")
    return path.read_bytes()
