"""Files that nobody else may read, and that are there whole or not at all."""

from __future__ import annotations

import os

from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """
    Put *content* in the place of *path*, with mode 0600.

    After a crash or a power cut it is there as it was, or as it is now.
    """
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # The name must not outlive a power cut without its content.
        os.fsync(file.fileno())
    new.replace(path)
