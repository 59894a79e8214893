"""Roles of API keys: who may do what, by the API and on the pages."""

import pytest

from controlplane import test_graphql_edge
from controlplane.pages import Browser, path_of
from controlplane.site import Refused, configuration, running, stack
from launcher.controlplane.actors import Actor
from launcher.controlplane.audit import Refusals
from launcher.controlplane.errors import Forbidden
from launcher.controlplane.graphql import schema
from launcher.controlplane.resolving import OPEN_TO_STRANGERS
from launcher.controlplane.roles import NEEDED, Role, needed


DOCUMENTS = {
    next(
        name for name in NEEDED if f"{name}(" in document or f"{{{name}{{" in document
    ): (document)
    for document in test_graphql_edge.test_strangers_learn_nothing.pytestmark[0].args[1]
    if any(f"{name}(" in document or f"{{{name}{{" in document for name in NEEDED)
}
"""One for each field that needs a role, about things that do not exist."""
KEYS = [
    {"id": role.value, "role": role.value, "secret_env": "CI_SECRET"} for role in Role
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, repository, backend):
    """A control plane with a key of each role."""
    folder = tmp_path_factory.mktemp("roles")
    with running(folder, configuration([stack(repository)], api_keys=KEYS)) as site:
        yield site


@pytest.fixture
def as_role(place):
    """Clients that are signed in with the key of a role."""
    return lambda role: place.stranger().sign_in(Role(role).value)


def refusals(api):
    document = (
        '{searchAuditTrailEntries(input: {first: 50, fullTextSearch: "api_key.refused"})'
        "{edges{node{actor{username} body affectedResource{resourceId resourceType}}}}}"
    )
    edges = api(document)["searchAuditTrailEntries"]["edges"]
    return [edge["node"] for edge in edges]


def test_every_field_of_the_schema_has_a_role():
    """No field is left to the default, and no role is given to what is not there."""
    roots = (schema().query_type, schema().mutation_type)
    fields = {name for root in roots for name in root.fields}
    assert NEEDED.keys() | OPEN_TO_STRANGERS == fields
    assert not NEEDED.keys() & OPEN_TO_STRANGERS
    assert DOCUMENTS.keys() == NEEDED.keys()


def test_what_nobody_thought_of_needs_the_strictest_role():
    """A field that is added later is an administrator's until somebody decides."""
    assert needed("launchMissiles") is Role.ADMIN
    assert [role.covers(Role.WRITER) for role in Role] == [False, True, True]


@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_do_what_it_may_and_no_more(as_role, role):
    """[capability 63] Fields answer who may ask for them, and refuse others in a sentence."""
    api = as_role(role)
    for name, document in DOCUMENTS.items():
        answer = api.post(document).json()
        messages = [error["message"] for error in answer.get("errors", ())]
        refused = (
            f"this needs the role {needed(name)}, and the API key '{role}' is a {role}"
        )
        assert (messages == [refused]) is not role.covers(needed(name)), name
        assert "unauthorized" not in messages, name


def test_a_refused_change_changes_nothing(place, as_role):
    """Whoever may only look neither begins a run nor ends it."""
    with pytest.raises(Refused, match="needs the role writer"):
        as_role("reader").trigger()
    run = as_role("writer").trigger()
    with pytest.raises(Refused, match="needs the role writer"):
        as_role("reader").change("discard", run)
    document = 'mutation{stackDisable(id: "testing-spacelift"){id}}'
    with pytest.raises(Refused, match="needs the role admin"):
        as_role("writer")(document)
    assert as_role("reader").state(run) in {"QUEUED", "READY"}
    as_role("writer").change("discard", run)
    enabled = as_role("reader")('{stack(id: "testing-spacelift"){isDisabled}}')
    assert enabled == {"stack": {"isDisabled": False}}


def test_everybody_learns_what_they_may(as_role):
    """The role is shown, and clients that ask whether they can write are told."""
    document = '{viewer{role} stack(id: "testing-spacelift"){canWrite spaceDetails{accessLevel}}}'
    assert [as_role(role)(document) for role in Role] == [
        {
            "viewer": {"role": name},
            "stack": {"canWrite": writes, "spaceDetails": {"accessLevel": level}},
        }
        for name, writes, level in (
            ("READER", False, "READ"),
            ("WRITER", True, "WRITE"),
            ("ADMIN", True, "ADMIN"),
        )
    ]


def test_refusals_are_in_the_audit_trail(place, as_role):
    """Who has tried what with which role, once an hour, so that nobody floods it."""
    reader, admin = as_role("reader"), as_role("admin")
    place.plane.refusals._noted.clear()
    known = len(refusals(admin))
    for _ in range(3):
        with pytest.raises(Refused):
            reader('mutation{taskCreate(stack: "x", command: "echo hunter2"){id}}')
    with pytest.raises(Refused):
        reader("{searchAuditTrailEntries(input: {}){edges{node{id}}}}")
    found = refusals(admin)[: len(refusals(admin)) - known]
    assert [node["body"] for node in found] == [
        '{"role": "reader", "wanted": "searchAuditTrailEntries"}',
        '{"role": "reader", "wanted": "taskCreate"}',
    ]
    assert {node["actor"]["username"] for node in found} == {"api::reader"}
    resource = {"resourceId": "reader", "resourceType": "API_KEY"}
    assert all(node["affectedResource"] == resource for node in found)


def test_a_refusal_is_noted_again_later(place, as_role, monkeypatch):
    """An hour later it is news."""
    reader, admin = as_role("reader"), as_role("admin")
    monkeypatch.setattr(Refusals, "EVERY_SECONDS", 0.0)
    before = len(refusals(admin))
    for _ in range(2):
        with pytest.raises(Refused):
            reader('mutation{stackLock(id: "x"){id}}')
    assert len(refusals(admin)) == before + 2


def test_a_refusal_that_was_not_written_is_still_news(place, as_role, monkeypatch):
    """What the database could not take is noted when it is tried again."""
    admin, refused = as_role("admin"), place.plane.refusals
    actor = Actor.of_api_key("reader")
    before = len(refusals(admin))
    with monkeypatch.context() as patched:

        def fail():
            raise OSError("the disk is full")

        patched.setattr(place.plane.store, "write", fail)
        with pytest.raises(OSError, match="full"):
            refused.refuse(actor, "taskCreate#unwritten")
    for _ in range(2):
        with pytest.raises(Forbidden):
            refused.refuse(actor, "taskCreate#unwritten")
    assert len(refusals(admin)) == before + 1


def test_another_role_counts_at_once(tmp_path, repository):
    """Sessions go on, and may do what the file says now; no role means administrator."""

    def given(**role):
        keys = [{"id": "ci", "secret_env": "CI_SECRET", **role}]
        return configuration([stack(repository)], api_keys=keys)

    with running(tmp_path, given()) as site:
        api = site.api()
        assert api("{viewer{role}}") == {"viewer": {"role": "ADMIN"}}
        site.apply(given(role="reader"))
        assert api("{viewer{role}}") == {"viewer": {"role": "READER"}}
        with pytest.raises(Refused, match="needs the role writer"):
            api.trigger()
        site.apply(given(role="writer"))
        assert api.trigger()


@pytest.fixture
def browsers(place):
    """One for each role."""

    def signed_in(role):
        browser = Browser(place)
        assert browser.sign_in(Role(role).value).status == 303
        return browser

    return {role: signed_in(role) for role in Role}


def test_pages_offer_what_the_role_allows(place, browsers, as_role):
    """No button that would be refused, and a refusal for who sends the form all the same."""
    worker = place.worker()
    run = as_role("writer").trigger()
    worker.take().handed_over()
    path, pool = path_of(place, run), "/worker-pool/default"
    shown = {
        role: (
            "Confirm</button>" in browser.text(path),
            "Drain</button>" in browser.text(pool),
        )
        for role, browser in browsers.items()
    }
    assert shown == {
        Role.READER: (False, False),
        Role.WRITER: (True, False),
        Role.ADMIN: (True, True),
    }
    reader, writer = browsers[Role.READER], browsers[Role.WRITER]
    word = reader.word("/")
    for action in (
        "confirm",
        "discard",
        "cancel",
        "stop",
        "approve",
        "reject",
        "replan",
    ):
        answer = reader.post(f"{path}/act", {"word": word, "action": action})
        assert answer.status == 403, action
        assert b"this needs the role writer" in answer.data
    fields = {"worker": worker.id, "action": "drain", "word": writer.word("/")}
    answer = writer.post(f"{pool}/act", fields)
    assert (answer.status, b"this needs the role admin" in answer.data) == (403, True)
    assert "drained" not in reader.text(pool)
    assert as_role("reader").state(run) == "UNCONFIRMED"
    assert writer.act(run, "discard", note="not today").status == 303
    assert "not today" in reader.text(path)


def test_a_reader_sees_a_run_to_its_last_line(place, browsers, as_role):
    """Log, download and events are for everybody who is signed in."""
    worker = place.worker()
    run = as_role("writer").trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"seen by all\n")
    job.settle("failed")
    reader = browsers[Role.READER]
    assert b"seen by all" in reader.get(f"{path_of(place, run)}/log.txt").data
    assert list(reader.events(run))[-1]["event"] == "over"
