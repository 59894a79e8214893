"""Fetching a commit, for tests."""

import io
import tarfile

import msgspec
import pytest

from given import a_job, a_run
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.wire.jobs import Source


def job(url, commit, branch="main", **how):
    run = a_run(
        commit=msgspec.structs.replace(a_run().commit, hash=commit, branch=branch)
    )
    return a_job(run=run, source=Source(url=url, **how))


def fetched(git, wanted, said=None):
    said = [] if said is None else said
    with git.fetch(wanted, CancelToken(), said.append) as stream:
        archive = b"".join(stream)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            entry.name: tar.extractfile(entry).read() if entry.isreg() else entry
            for entry in tar
        }


def refused(git, wanted):
    with pytest.raises(SourceUnavailable) as caught:
        fetched(git, wanted)
    return caught.value
