"""Folders that are complete and unchanged, or known not to be.

    seal(folder)      the digest of every file, in manifest.json, which is written last
    publish(folder, name)   the folder gets its name: from then on it exists
    verify(folder)    every file is there and as it was

law: after a crash at any moment, a folder that has its name passes `verify`. Every file and every
directory is flushed to the disk (fsync) before the rename, the rename is atomic, and the parent is
flushed after it.

law: a changed, cut or missing file fails `verify`, the manifest included: it holds the digest of
its own content, and only one text of that content is accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"


class Damage(Exception):
    """A file is not as it was written."""

    def __init__(self, file: Path, what: str):
        super().__init__(f"{file}: {what}")
        self.file, self.what = file, what


def seal(folder: Path) -> None:
    """Flush all files of a folder, and write the manifest of their digests."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {
                "sha256": digest,
                "bytes": path.stat().st_size,
            }
            os.fsync(file.fileno())
    write(folder / NAME, _text(files))
    for directory in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        _flush(directory)
    _flush(folder)


def publish(folder: Path, name: Path) -> None:
    """Give a sealed folder its name beside it, atomically and for good."""
    os.replace(folder, name)
    _flush(name.parent)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        Damage: names the first file that is missing, cut or changed.
    """
    listed = _read(folder / NAME)
    for name, fact in listed.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != fact["bytes"]:
                    raise Damage(path, f"{size} bytes in the place of {fact['bytes']}")
                if hashlib.file_digest(file, "sha256").hexdigest() != fact["sha256"]:
                    raise Damage(path, "its sha256 is not that of the manifest")
        except FileNotFoundError:
            raise Damage(path, "missing") from None
        except OSError as error:
            raise Damage(path, f"cannot be read ({error.strerror})") from error


def write(path: Path, text: str) -> None:
    """A text file, flushed to the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _text(files: Any) -> str:
    """The manifest of some files: the same ones give the same bytes."""
    content = json.dumps(files, sort_keys=True, indent=1)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return json.dumps({"sha256": digest, "files": files}, sort_keys=True, indent=1) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        raise Damage(path, "missing") from None
    except OSError as error:
        raise Damage(path, f"cannot be read ({error.strerror})") from error
    try:
        files = json.loads(found)["files"]
        same = _text(files).encode() == found
    except (ValueError, KeyError, TypeError):
        same, files = False, {}
    if not same:
        raise Damage(path, "not the manifest that was written")
    return files


def _flush(directory: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
