"""Removing folders that may be large, on disks that may be slow."""

from __future__ import annotations

import contextlib
import os

from pathlib import Path

from launcher.heartbeat import beat


def remove_tree(folder: Path) -> None:
    """
    Remove *folder* and all that is in it, as far as that can be done.

    Every entry is progress: who removes much takes long, and does not hang.
    Links are removed and never followed, whoever puts them there meanwhile.
    """
    with contextlib.suppress(OSError):
        for _, folders, files, inside in os.fwalk(folder, topdown=False):
            for name in files:
                beat()
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=inside)
            for name in folders:
                beat()
                with contextlib.suppress(OSError):
                    _remove_folder(name, inside)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_folder(name: str, inside: int) -> None:
    try:
        os.rmdir(name, dir_fd=inside)
    except NotADirectoryError:  # a link to one
        os.unlink(name, dir_fd=inside)
