"""Images in which runs cannot be carried out, and volumes that are full."""

import contextlib

from given import a_job
from support.built_images import built
from support.engines import DockerSite, run
from ulid import ULID

import docker
import pytest

from launcher.adapters.engines.docker import LABEL
from launcher.errors import ImageUnavailable
from launcher.model import WORKSPACE


pytestmark = pytest.mark.services

IMAGES = {
    "no user": (
        "FROM {image}\nUSER root\nRUN sed -i /:1983:/d /etc/passwd\n",
        "the image lacks a user with the number 1983, without which no run can be"
        " carried out in it",
    ),
    "no tools": (
        "FROM {image}\nUSER root\nRUN for each in tail stat sed; do"
        " rm $(command -v $each); done\n",
        "the image lacks `tail`, `stat`, `sed`, without which no run can be carried out"
        " in it",
    ),
}


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.mark.parametrize("what", IMAGES)
def test_what_an_image_lacks_is_said(site, what):
    """[capability 112] What an image would need is named in one sentence, and nothing runs."""
    dockerfile, sentence = IMAGES[what]
    with built(site, dockerfile) as image, site.sandbox(image=image) as sandbox:
        with pytest.raises(ImageUnavailable) as caught:
            run(sandbox, "echo never")
    assert str(caught.value).endswith(sentence)


def test_an_image_without_ps(site):
    """[capability 113] A missing `ps` is mentioned once, and is no reason not to run."""
    without = "FROM {image}\nUSER root\nRUN rm $(command -v ps)\n"
    with built(site, without) as image, site.sandbox(image=image) as sandbox:
        first, printed = run(sandbox, "echo first")
        second, more = run(sandbox, "echo second")
    said = b"The image has no `ps`; nothing here needs it, but a hook or tool might.\n"
    assert (True, said + b"first\n") == (first.ok, printed)
    assert (True, b"second\n") == (second.ok, more)


def test_a_hook_that_fills_the_volume(site):
    """A phase that fails on a full workspace says so, and one that fails otherwise does not."""
    job = a_job(id=str(ULID()))
    volume = f"spacelift-{job.id.lower()}-workspace"
    # The engine finds a small one there already, which somebody keeps mounted.
    site.api.create_volume(
        volume,
        driver_opts={
            "type": "tmpfs",
            "device": "tmpfs",
            "o": "size=2m,uid=1983,gid=1983",
        },
        labels={f"{LABEL}.instance": site.instance},
    )
    keeper = site.api.create_container(
        site.image,
        ["sleep", "600"],
        labels={f"{LABEL}.instance": site.instance},
        host_config=site.api.create_host_config(binds=[f"{volume}:{WORKSPACE}"]),
    )
    try:
        site.api.start(keeper)
        with site.sandbox(job=job) as sandbox:
            failed, _ = run(sandbox, "exit 3")
            filled, printed = run(sandbox, "head -c 9000000 /dev/zero >all", "true")
            cleared, _ = run(sandbox, "rm all", "exit 4")
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            site.api.remove_container(keeper, force=True)
        with contextlib.suppress(docker.errors.NotFound):
            site.api.remove_volume(volume, force=True)
    assert (3, False) == (failed.code, failed.volume_full)
    assert (True, True) == (not filled.ok, filled.volume_full), printed
    assert b"No space left on device" in printed
    assert (4, False) == (cleared.code, cleared.volume_full)
