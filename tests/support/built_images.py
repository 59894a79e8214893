"""Images that are built for one test."""

import contextlib
import io
import tarfile

from ulid import ULID

from launcher.adapters.engines.docker import LABEL


@contextlib.contextmanager
def built(site, dockerfile):
    """An image of its own, which is gone at the end."""
    text = (
        f"{dockerfile.format(image=site.image)}LABEL {LABEL}.instance={site.instance}\n"
    )
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    tag = f"spacelift-launcher/lacking:{str(ULID()).lower()}"
    said = list(
        site.api.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
        )
    )
    assert not [line for line in said if "error" in line], said
    try:
        yield site.api.inspect_image(tag)["Id"]
    finally:
        site.api.remove_image(tag, force=True)
