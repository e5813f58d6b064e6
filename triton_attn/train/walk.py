"""The one walk over folders of images: what is in them, each place once, and what was left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import UserError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The images that are read; others are counted by their suffix."""

_OTHERS = """
    apng arw avif cr2 cr3 dng exr gif hdr heic heif ico jfif jp2 jxl nef orf pbm pcx pnm psd raf raw rw2 svg tga xcf
"""
OTHER_IMAGES = frozenset(f".{name}" for name in _OTHERS.split())

MOST_EXAMPLES = 3
HIDDEN = "dotted folders and files, or __MACOSX"
AGAIN = "links to places that are walked anyway"
TWICE = "further names of files that are counted already"
NOWHERE = "links that lead nowhere"
NEITHER = "neither files nor folders"
OUTSIDE = "images outside of the class folders"


class Walk:
    """Walks below one folder, and remembers where it was and what it left out.

    Left out are dotted folders and files and macOS's ``__MACOSX``, links that lead into what is walked (or to a folder
    that holds it) or to a place that was met before, and whatever is neither a file nor a folder: a pipe would be
    waited for. A file with several names (hard links) counts once, so that no image is both trained on and held out.

    Args:
        root: the folder.
        called: the argument that named it.
    """

    def __init__(self, root: Path, called: str = "--data") -> None:
        self.root, self.called = root, called
        self.trees = [Path(os.path.realpath(root))]
        self.seen: set[tuple[int, int]] = set()
        self.left_out: dict[str, list[Path]] = {}
        self.kinds: Counter[str] = Counter()

    def enter(self, folders: Sequence[Path]) -> None:
        """Walk these folders alone: links into the rest of the root lead to places that are not walked."""
        self.trees = [Path(os.path.realpath(folder)) for folder in folders]

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, by name; images beside them are noted.

        Raises:
            UserError: the folder cannot be read.
        """
        found = []
        for path, about in self._entries(folder):
            if not stat.S_ISDIR(about.st_mode):
                self._leave(OUTSIDE, path)
            elif self._is_new(path, about, AGAIN):
                found.append(path)
        return sorted(found)

    def images(self, folder: Path) -> list[Path]:
        """The images in a folder that :meth:`folders` gave and in those below it, by name.

        Raises:
            UserError: a folder cannot be read.
        """
        found, waiting = list[Path](), [folder]
        while waiting:
            for path, about in self._entries(waiting.pop()):
                if stat.S_ISDIR(about.st_mode):
                    if self._is_new(path, about, AGAIN):
                        waiting.append(path)
                elif self._is_new(path, about, TWICE):
                    found.append(path)
        return sorted(found)

    def summary(self) -> str:
        """What was left out, in a line; empty if nothing was."""
        parts = []
        for what, paths in self.left_out.items():
            names = ", ".join(printable(str(path.relative_to(self.root))) for path in paths[:MOST_EXAMPLES])
            parts.append(f"{what}: {len(paths)} ({names}{', …' if len(paths) > MOST_EXAMPLES else ''})")
        if self.kinds:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
            parts.append(f"images of kinds that are not read: {kinds}")
        return "; ".join(parts)

    def _entries(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Folders and images, real ones before links, so that what has several names keeps the real one."""
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry.is_symlink(), entry.name) for entry in found)
        except OSError as error:
            raise UserError(f"{self.called}: {folder} cannot be read ({error.strerror or error})") from error
        for is_link, name in entries:
            path = folder / name
            suffix = path.suffix.lower()
            try:
                about = os.stat(path)
            except OSError:
                self._leave(NOWHERE, path)
                continue
            if not (stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)):
                self._leave(NEITHER, path)
            elif stat.S_ISREG(about.st_mode) and suffix not in SUFFIXES:
                self.kinds.update([suffix] if suffix in OTHER_IMAGES and not name.startswith(".") else [])
            elif name.startswith(".") or name == "__MACOSX":
                self._leave(HIDDEN, path)
            elif is_link and self._is_walked(path):
                self._leave(AGAIN, path)
            else:
                yield path, about

    def _is_walked(self, link: Path) -> bool:
        target = Path(os.path.realpath(link))
        return any(target == tree or tree in target.parents or target in tree.parents for tree in self.trees)

    def _is_new(self, path: Path, about: os.stat_result, otherwise: str) -> bool:
        """Whether this file or folder was not met before, under any name; else it is left out."""
        place = (about.st_dev, about.st_ino)
        if place in self.seen:
            self._leave(otherwise, path)
            return False
        self.seen.add(place)
        return True

    def _leave(self, what: str, path: Path) -> None:
        self.left_out.setdefault(what, []).append(path)
