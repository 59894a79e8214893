"""Control planes to test against."""

import dataclasses
import itertools
import shutil

import pytest

from controlplane.pages import Browser
from controlplane.site import (
    Backend,
    Process,
    Repository,
    configuration,
    running,
    stack,
)
from controlplane.spacectl import Spacectl
from launcher.controlplane import keys
from support.postgres import Postgres


# What the real client does is tried where there is one.
collect_ignore = [] if shutil.which("spacectl") else ["test_real_spacectl.py"]

_NUMBERS = itertools.count(1)
_ON_BOTH = {
    "test_concurrency",
    "test_database_commands",
    "test_drift",
    "test_dry_run",
    "test_killed_server",
    "test_leases",
    "test_main_path",
    "test_run_logs",
    "test_scheduling",
    "test_pool_counts",
    "test_store",
    "test_together",
    "test_retention",
    "test_roles",
}
"""Modules whose tests are about what the database does: run on either kind."""


def pytest_generate_tests(metafunc):
    module = metafunc.module.__name__.rpartition(".")[2]
    if module in _ON_BOTH and "backend" in metafunc.fixturenames:
        metafunc.parametrize(
            "backend", ["sqlite", "postgresql"], indirect=True, scope="module"
        )


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for the session."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def backend(request):
    """The kind of database: SQLite where a module does not ask for both."""
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        yield kind
        return
    server = request.getfixturevalue("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "postgres", server)
        yield kind
    server.drop_all()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with one commit."""
    made = Repository(tmp_path_factory.mktemp("source") / "testing-spacelift")
    made.commit("Add main.tf\n\nThe first one.")
    return made


@pytest.fixture(scope="session", autouse=True)
def cheap_hashes():
    """Hashing passwords is slow on purpose; tests need not be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_COST", 2)
        yield


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory, backend):
    """One server for the tests of a module."""
    with running(tmp_path_factory.mktemp("site"), configuration([])) as running_site:
        yield running_site


@pytest.fixture
def site(shared_site, repository):
    """A stack and a worker pool that no other test has used, and a pool "other"."""
    number = next(_NUMBERS)
    fresh = dataclasses.replace(
        shared_site, slug=f"stack-{number}", pool=f"pool-{number}"
    )
    pools = [{"name": fresh.pool}, {"name": "other"}]
    one = stack(repository, fresh.slug, worker_pool=fresh.pool)
    fresh.apply(configuration([one], worker_pools=pools))
    return fresh


@pytest.fixture
def api(site):
    """A signed-in client."""
    return site.api()


@pytest.fixture
def spacectl(api):
    """A signed-in spacectl."""
    return Spacectl(api)


@pytest.fixture
def worker(site):
    """A registered worker of the pool "default"."""
    return site.worker()


@pytest.fixture
def start_process(tmp_path):
    """Starts control planes in processes of their own."""
    started = []

    def start(given, **options):
        process = Process(tmp_path, given, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


@pytest.fixture
def judged(site, repository):
    """Gives the site's stack policies, and settings."""

    def give(*policies, **changes):
        pools = [{"name": site.pool}, {"name": "other"}]
        names = [each["name"] for each in policies if not each.get("labels")]
        one = stack(
            repository, site.slug, worker_pool=site.pool, policies=names, **changes
        )
        site.apply(configuration([one], worker_pools=pools, policies=list(policies)))
        return site

    return give


@pytest.fixture
def browser(site):
    found = Browser(site)
    assert found.sign_in().status == 303
    return found
