"""A real browser, and a control plane in a process of its own to look at."""

import os
import shutil
import urllib.parse

from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.site import (
    APPROVE,
    ENVIRON,
    Process,
    Repository,
    configuration,
    policy,
    stack,
)
from playwright.sync_api import sync_playwright


_ALONE = [
    # Nothing but our pages is asked for, and root may run it.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
CAREFUL = policy("careful", 'warn["look at <it>"] { true }\nsample { true }')
PATIENCE = 60_000
"""Milliseconds; a busy machine is no reason to fail."""


@pytest.fixture(scope="session")
def chromium():
    """The distribution's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=_ALONE
        )
        yield browser
        browser.close()


@dataclass
class Plane:
    """A control plane with two stacks, one of them with policies, which can be killed and started again."""

    folder: Path
    given: dict
    server: Process

    @property
    def base(self):
        return self.server.base

    def restart(self):
        """SIGKILL, and the same again at the same addresses."""
        before = self.server
        before.end()
        self.server = Process(
            self.folder,
            self.given,
            listen=before.base.removeprefix("http://"),
            listen_workers=before.workers.removeprefix("https://"),
        ).started()

    def run_page(self, run, slug="testing-spacelift"):
        return f"{self.base}/stack/{slug}/run/{run}"


@pytest.fixture
def plane(tmp_path):
    repository = Repository(tmp_path / "source" / "testing-spacelift")
    repository.commit("Rename the <main> network & its routes")
    folder = tmp_path / "plane"
    folder.mkdir()
    judged = stack(repository, "judged", policies=["careful", "two-eyes"])
    given = configuration([stack(repository), judged], policies=[CAREFUL, APPROVE])
    found = Plane(folder, given, Process(folder, given).started())
    yield found
    found.server.end()


@pytest.fixture
def open_page(chromium, plane):
    """Opens pages of somebody who is signed in; nothing of them may fail."""
    contexts, complaints = [], []

    def opened(path="/", *, sign_in=True, **options):
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                "Content Security Policy" in message.text
                and complaints.append(message.text)
            ),
        )
        page.goto(urllib.parse.urljoin(plane.base, path))
        if sign_in:
            page.get_by_label("API key").fill("ci")
            page.get_by_label("Secret").fill(ENVIRON["CI_SECRET"])
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("button", name="Sign out").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def screenshot(tmp_path):
    """Takes pictures; docs/screenshots has some, made with SCREENSHOTS=folder."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))

    def take(page, name, **options):
        picture = page.screenshot(path=folder / f"{name}.png", **options)
        assert picture.startswith(b"\x89PNG")

    return take
