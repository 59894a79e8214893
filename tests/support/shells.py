"""The shells that images bring along as ``sh``, as far as this machine has them."""

import shutil

from pathlib import Path

import pytest


FOUND = {
    name: path for name in ("dash", "bash", "busybox") if (path := shutil.which(name))
}
# Whatever this machine calls sh is always among them.
FOUND.setdefault(Path("/bin/sh").resolve().name, "/bin/sh")


@pytest.fixture(params=FOUND)
def sh(request, tmp_path):
    """The path of a shell that believes to be called ``sh``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "sh"
    path.symlink_to(FOUND[request.param])
    return str(path)
