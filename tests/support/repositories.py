"""Repositories that tests commit to."""

import os
import subprocess


AUTHOR = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "PATH": os.environ["PATH"],
}


class Repository:
    """A repository that people push to."""

    def __init__(self, path, *, kind="sha1", new=True):
        self.path = path
        self.url = f"file://{path}"
        if not new:
            return
        path.mkdir(parents=True)
        self.git("init", "--quiet", "-b", "main", f"--object-format={kind}")

    def git(self, *arguments, stdin=b""):
        return (
            subprocess.run(
                ["git", *arguments],
                cwd=self.path,
                env=AUTHOR,
                input=stdin,
                stdout=subprocess.PIPE,
                check=True,
            )
            .stdout.decode()
            .strip()
        )

    def commit(self, **files):
        for name, content in files.items():
            self.write(name.replace("__", "."), content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "a change")
        return self.git("rev-parse", "HEAD")

    def write(self, name, content):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
