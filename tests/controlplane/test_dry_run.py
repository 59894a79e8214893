"""The dry run: what applying a configuration would change, said without changing it."""

import subprocess
import sys

import pytest
import sqlalchemy as sa
import yaml

from controlplane.site import (
    ENVIRON,
    ROOT,
    configuration,
    data_of,
    database,
    eventually,
    placed,
    running,
    stack,
)
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import downgrade, open_engine, open_store


@pytest.fixture(autouse=True)
def another_secret(monkeypatch):
    """One more than other tests need."""
    monkeypatch.setitem(ENVIRON, "OTHER_SECRET", "hunter2-of-another")


@pytest.fixture
def ask(tmp_path):
    """Asks the command about a configuration; gives exit code, lines, and errors."""

    def dry_run(given):
        config = tmp_path / "wanted.yaml"
        placed_there = placed(tmp_path, given)
        config.write_text(
            given if isinstance(given, str) else yaml.safe_dump(placed_there)
        )
        done = subprocess.run(
            [
                *(sys.executable, "-m", "launcher", "server", "--dry-run"),
                *("--config", config, "--database", database(tmp_path)),
            ],
            cwd=ROOT,
            env=ENVIRON,
            capture_output=True,
            text=True,
        )
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        config.unlink()
        return done.returncode, done.stdout.splitlines(), done.stderr

    return dry_run


def contents(folder):
    """Everything in the database."""
    engine = open_engine(database(folder))
    with engine.connect() as connection:
        found = {
            table.name: connection.execute(sa.select(table)).all()
            for table in t.metadata.sorted_tables
        }
    engine.dispose()
    return found


def rich(repository, **changes):
    """A configuration with something of every kind."""
    given = configuration(
        [
            stack(
                repository,
                environment=[
                    {"name": "PLAIN", "value": "plain"},
                    {"name": "TOKEN", "secret_env": "STACK_SECRET"},
                ],
                hooks={"before_plan": ["echo hunter2"]},
                contexts=[{"name": "shared"}],
                vendor_config={"workspace": "hunter2"},
            ),
            stack(repository, "second"),
        ],
        contexts=[
            {
                "name": "shared",
                "mounted_files": [{"path": "a", "secret_env": "STACK_SECRET"}],
            }
        ],
        policies=[{"name": "p", "type": "plan", "body": "package spacelift\n"}],
        webhooks=[
            {
                "name": "ops",
                "url": "https://x.example/hunter2",
                "secret_env": "CI_SECRET",
            }
        ],
    )
    return {**given, **changes}


def test_everything_is_new_before_the_first_start(tmp_path, repository, ask):
    """Nothing is there to compare with, and nothing is made in order to compare."""
    before = sorted(tmp_path.iterdir())
    code, lines, _ = ask(rich(repository))
    assert code == 1
    assert lines == [
        '+ API key "ci"',
        '+ account "acme"',
        '+ policy "p"',
        '+ stack "second"',
        '+ stack "testing-spacelift"',
        '+ webhook "ops"',
        '+ worker pool "default"',
        '+ worker pool "other"',
    ]
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_applied_makes_no_difference(tmp_path, repository, ask):
    """Asked while the server runs, or after it has ended; what the API added stays."""
    given = rich(repository)
    with running(tmp_path, given) as site:
        added = (
            'mutation{stackConfigAdd(stack: "second", config: {id: "ADDED", '
            'type: ENVIRONMENT_VARIABLE, value: "x", writeOnly: false}){id}}'
        )
        site.api()(added)
        assert ask(given) == (0, [], "no differences\n")
    assert ask(given) == (0, [], "no differences\n")


def test_each_difference_is_told_and_no_secret(tmp_path, repository, ask):
    """Plain settings with both values, what may be secret by its name only."""
    with running(tmp_path, rich(repository)) as site:
        run = site.api().trigger("second")
        eventually(lambda: site.api().state(run, "second") == "READY")
    before = contents(tmp_path)
    wanted = rich(
        repository,
        account="acme-two",
        api_keys=[
            {"id": "ci", "secret_env": "OTHER_SECRET", "role": "writer"},
            {"id": "new", "secret_env": "CI_SECRET"},
        ],
        worker_pools=[{"name": "default", "labels": ["a"], "drift_run_limit": 2}],
        policies=[{"name": "p", "type": "plan", "body": "package spacelift\nx = 1\n"}],
        webhooks=[
            {
                "name": "ops",
                "url": "https://x.example/hunter2-b",
                "secret_env": "OTHER_SECRET",
                "allow_local": True,
            }
        ],
        contexts=[],
        stacks=[
            stack(
                repository,
                branch="release",
                autodeploy=True,
                labels=["\u001b[31mred"],
                environment=[{"name": "PLAIN", "secret_env": "STACK_SECRET"}],
                hooks={"after_plan": ["echo hunter2"]},
                vendor_config={"workspace": "hunter2-b"},
            )
        ],
    )
    code, lines, errors = ask(wanted)
    title = '~ stack "testing-spacelift": '
    assert (code, errors) == (1, f"{len(lines)} differences\n")
    assert lines == [
        '~ API key "ci": role changes from "admin" to "writer"',
        '~ API key "ci": secret changes',
        '+ API key "new"',
        '~ account: name changes from "acme" to "acme-two"',
        '~ policy "p": body changes',
        '- stack "second"',
        f"{title}autodeploy changes from false to true",
        f'{title}branch changes from "main" to "release"',
        f"{title}context shared: attached is removed",
        f"{title}context shared: file a is removed",
        f"{title}hooks after_plan is added",
        f"{title}hooks before_plan is removed",
        f'{title}labels changes from [] to ["\\u001b[31mred"]',
        f"{title}variable PLAIN (always) changes",
        f"{title}variable TOKEN (always) is removed",
        f"{title}vendor_config workspace changes",
        '~ webhook "ops": allow_local changes from false to true',
        '~ webhook "ops": secret changes',
        '~ webhook "ops": url changes',
        '~ worker pool "default": drift_run_limit changes from null to 2',
        '~ worker pool "default": labels changes from [] to ["a"]',
        '- worker pool "other"',
        '! stack "second": waiting runs are discarded: 1',
    ]
    assert contents(tmp_path) == before
    with running(tmp_path, wanted):
        pass
    assert ask(wanted)[:2] == (0, [])


def test_a_deleted_stack_is_said_to_stay_deleted(tmp_path, repository, ask):
    """Applying the file does not bring it back."""
    given = rich(repository)
    with running(tmp_path, given) as site:
        site.api()('mutation{stackDelete(id: "second"){id}}')
        assert ask(given)[:2] == (1, ['! stack "second" stays deleted'])


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("account: acme", "konto: acme", "line 1: unknown key 'konto'"),
        ("package spacelift", "package", "policy 'p': "),
    ],
)
def test_a_wrong_file_is_refused(repository, ask, before, after, sentence):
    """With exit code 2 and the sentences that the server would log."""
    text = yaml.safe_dump(rich(repository), sort_keys=False)
    assert before in text
    code, lines, errors = ask(text.replace(before, after, 1))
    assert (code, lines) == (2, [])
    assert sentence in errors


def test_a_database_that_cannot_be_compared(tmp_path, repository, ask):
    """Of another revision, or without its key: one sentence, and exit code 8."""
    given = rich(repository)
    with running(tmp_path, given):
        pass
    engine = open_engine(database(tmp_path))
    downgrade(engine, "0004")
    engine.dispose()
    code, _, errors = ask(given)
    assert code == 8
    assert "the database is of revision 0004" in errors
    open_store(database(tmp_path)).close()
    (data_of(tmp_path) / "key").unlink()
    code, _, errors = ask(given)
    assert code == 8
    assert "there is no key file" in errors
    assert not (data_of(tmp_path) / "key").exists()
