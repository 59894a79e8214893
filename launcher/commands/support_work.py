"""What ``support-bundle`` collects, from the launcher or without one."""

from __future__ import annotations

import io
import os
import tarfile
import time

from collections.abc import Mapping
from pathlib import Path

import click

from launcher import private_files, support
from launcher.adapters.engines.docker import connect, described
from launcher.admin import ask
from launcher.disk import Disks
from launcher.errors import LauncherError, NoLauncherAnswers
from launcher.settings import Settings


WRITTEN, FAILED = 0, 1


def write(path: Path, state_dir: Path) -> int:
    """Collect into *path*; return the exit code."""
    parts: Mapping[str, str]
    try:
        parts = ask(state_dir, "support")
    except NoLauncherAnswers as exc:
        click.echo(f"spacelift-launcher: {exc}; without it, less is known", err=True)
        try:
            parts = _without(str(exc))
        except LauncherError as wrong:
            click.echo(f"spacelift-launcher: {wrong}", err=True)
            return FAILED
    try:
        private_files.write(path, _packed(parts))
    except OSError as exc:
        text = f"{path} cannot be written: {exc.strerror}"
        click.echo(f"spacelift-launcher: {text}", err=True)
        return FAILED
    click.echo(f"{path}: {', '.join(sorted(parts))}")
    return WRITTEN


def _without(why: str) -> Mapping[str, str]:
    settings = Settings.from_environ(os.environ)
    try:
        api = connect(settings.host, connections=1)
        engine = described(api)
        api.close()
    except LauncherError as exc:
        engine = {"error": str(exc)}
    root = settings.host.state_dir
    used = Disks((root,), threshold=100).each()[0]
    return support.parts(
        settings,
        readyz={"launcher": why},
        metrics="",
        journal=None,
        log=(),
        engine=engine,
        disks={str(root): used},
    )


def _packed(parts: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, text in sorted(parts.items()):
            content = text.encode("utf-8", "replace")
            member = tarfile.TarInfo(f"spacelift-launcher/{Path(name).name}")
            member.size, member.mtime, member.mode = (
                len(content),
                int(time.time()),
                0o600,
            )
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()
