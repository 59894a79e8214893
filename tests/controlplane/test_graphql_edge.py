"""GraphQL at its edge: statuses, strangers, sizes, and what is never shown."""

import json

import jwt
import pytest

from graphql import get_introspection_query

from controlplane.site import Refused, configuration, running, stack
from launcher.controlplane.queries import Queries


@pytest.mark.parametrize(
    "document",
    [
        "{debugInfo{selfHostedVersion}}",
        "{stacks{id}}",
        '{stack(id: "x"){id}}',
        '{runStack(runId: "x"){id}}',
        "{searchStacks(input: {}){edges{node{id}}}}",
        "{workerPools{id}}",
        '{workerPool(id: "x"){id}}',
        'mutation{runTrigger(stack: "x"){id}}',
        'mutation{runConfirm(stack: "x", run: "x"){id}}',
        'mutation{runDiscard(stack: "x", run: "x"){id}}',
        'mutation{runCancel(stack: "x", run: "x"){id}}',
        'mutation{runStop(stack: "x", run: "x"){id}}',
        'mutation{runRetry(stack: "x", run: "x"){id}}',
        'mutation{runPromote(stack: "x", run: "x"){id}}',
        'mutation{runTargetedReplan(stack: "x", run: "x", targets: []){id}}',
        'mutation{runPrioritizeSet(stack: "x", run: "x", prioritize: true){id}}',
        'mutation{taskCreate(stack: "x", command: "x"){id}}',
        'mutation{uploadLocalWorkspace(stack: "x"){id}}',
        'mutation{runProposeLocalWorkspace(stack: "x", workspace: "x"){id}}',
        'mutation{stackLock(id: "x"){id}}',
        'mutation{stackUnlock(id: "x"){id}}',
        'mutation{stackEnable(id: "x"){id}}',
        'mutation{stackDisable(id: "x"){id}}',
        'mutation{stackDelete(id: "x"){id}}',
        'mutation{stackSetCurrentCommit(id: "x", sha: "x"){id}}',
        'mutation{stackSyncCommit(id: "x"){id}}',
        'mutation{stackConfigAdd(stack: "x", config: {id: "x", type: FILE_MOUNT,'
        ' value: "", writeOnly: false}){id}}',
        'mutation{stackConfigDelete(stack: "x", id: "x"){id}}',
        'mutation{stateDownloadUrl(input: {stackId: "x"}){url}}',
        'mutation{workerDrainSet(workerPool: "x", id: "x", drain: true){id}}',
        'mutation{workerPoolCycle(id: "x")}',
        "{publicWorkerPool{searchSchedulableRuns(input: {}){edges{position: __typename}}}}",
        '{policy(id: "x"){id}}',
        "{searchPolicies(input: {}){edges{node{id}}}}",
        'mutation{runExternalDependencyMarkAsCompleted(dependency: "x",'
        " status: FAILED){phantom}}",
        'mutation{policySimulate(body: "x", input: "{}", type: PLAN)}',
        'mutation{runReview(stack: "x", decision: APPROVE){id}}',
        "{searchAuditTrailEntries(input: {}){edges{node{id}}}}",
        "{__schema{types{name}}}",
        '{__type(name: "Stack"){name}}',
        "{viewer{id} ...a} fragment a on Query{__schema{types{name}}}",
        "{viewer{id} ...on Query{__schema{types{name}}}}",
        "{viewer{id} __schema{types{name}}}",
        'mutation{a: apiKeyUser(id: "ci", secret: "a"){jwt}'
        ' b: apiKeyUser(id: "ci", secret: "b"){jwt}}',
        'mutation{...a} fragment a on Mutation{apiKeyUser(id: "a", secret: "b"){jwt}}',
        "query a{viewer{id}} query b{viewer{id}}",
        "{stakc{id}}",
        "{",
        get_introspection_query(),
    ],
)
def test_strangers_learn_nothing(shared_site, document):
    """Whatever they ask, known or not, the answer is one word and status 200."""
    response = shared_site.stranger().post(document)
    assert response.status == 200
    answer = response.json()
    assert [error["message"] for error in answer["errors"]] == ["unauthorized"]
    assert not any((answer["data"] or {}).values())


@pytest.mark.parametrize("bearer", ["garbage", "a.b.c", " ", "\u00e9"])
def test_a_bad_token_is_no_token(shared_site, bearer):
    """Whoever shows one is a stranger."""
    stranger = shared_site.stranger()
    stranger.jwt = bearer
    assert stranger("{viewer{id}}") == {"viewer": None}
    with pytest.raises(Refused, match="unauthorized"):
        stranger("{stacks{id}}")


def test_every_root_field_is_closed(site):
    """A field that is added later is not open by accident."""
    fields = site.api()(
        "{__schema{queryType{fields{name}} mutationType{fields{name}}}}"
    )
    schema = fields["__schema"]
    names = [
        field["name"]
        for kind in ("queryType", "mutationType")
        for field in schema[kind]["fields"]
    ]
    tested = test_strangers_learn_nothing.pytestmark[0].args[1]
    for name in set(names) - {"viewer", "apiKeyUser", "oauthUser"}:
        assert any(name in document for document in tested), name


def test_a_signed_in_caller_may_ask_for_the_schema(api):
    """`spacectl api --schema` works."""
    assert api(get_introspection_query())["__schema"]["types"]


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        ("wrong key", {}),
        ("expired", {"exp": 1}),
        ("other audience", {"aud": "http://elsewhere"}),
        ("other generation", {"gen": "x"}),
        ("unknown key", {"sub": "nobody"}),
    ],
)
def test_a_token_must_be_ours(site, api, change, claims):
    """Signature, time, audience and API key are all checked."""
    given = jwt.decode(api.jwt, options={"verify_signature": False})
    assert given["aud"] == site.base
    key = site.plane.sign_in._keyring.jwt
    api.jwt = jwt.encode(given, key, algorithm="HS256")
    assert api("{viewer{id}}")["viewer"]
    signing_key = b"x" * 32 if change == "wrong key" else key
    api.jwt = jwt.encode({**given, **claims}, signing_key, algorithm="HS256")
    assert api("{viewer{id}}") == {"viewer": None}
    api.jwt = jwt.encode(given, "", algorithm="none")
    assert api("{viewer{id}}") == {"viewer": None}


def test_removing_an_api_key_ends_its_sessions(tmp_path, repository):
    """A token is worth no more than the key it came from."""
    given = configuration([stack(repository)])
    with running(tmp_path, given) as site:
        api = site.api()
        site.apply(given)
        assert api("{viewer{id}}")["viewer"]
        changed = [{"id": "ci", "secret_env": "STACK_SECRET"}]
        site.apply(configuration([stack(repository)], api_keys=changed))
        assert api("{viewer{id}}") == {"viewer": None}
        with pytest.raises(Refused, match="unauthorized"):
            api.sign_in()
        api.jwt = ""
        api.sign_in(secret="hunter2-of-the-stack")
        site.apply(configuration([stack(repository)], api_keys=[]))
        assert api("{viewer{id}}") == {"viewer": None}


def test_a_failure_is_masked(api, monkeypatch, capsys):
    """What broke inside is for the operator's log, not for the answer."""

    def broken(self):
        raise RuntimeError("postgresql://user:hunter2@db")

    monkeypatch.setattr(Queries, "stacks", broken)
    response = api.post("{stacks{id}}")
    assert response.status == 200
    assert response.json()["errors"][0]["message"] == "internal error"
    assert "hunter2" not in response.data.decode()
    assert "resolver.crashed" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{stacks{id", "Syntax Error"),
        ("{stakc{id}}", "Cannot query field"),
        ("{viewer{id}}" * 2000, "tokens"),
        ("{" + "a{" * 50 + "b" + "}" * 51, "deep"),
        ("{...a} fragment a on Query{...a}", "deep"),
        (
            "{...f0}"
            + "".join(
                f"fragment f{n} on Query{{...f{n + 1} ...f{n + 1}}}" for n in range(200)
            ),
            "deep",
        ),
        ('{stack(id: "x"){run(id: "y"){logs(state: NOPE){exists}}}}', "NOPE"),
        ("query a{viewer{id}} query b{viewer{id}}", "operation name"),
        ("subscription{x}", "subscription"),
    ],
)
def test_bad_documents_are_refused(api, document, sentence):
    """Broken, unknown, too long, too deep: a sentence, and status 200."""
    with pytest.raises(Refused, match=sentence):
        api(document)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"query": 1}', 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b'{"query": "' + b" " * (1 << 20) + b'"}', 413),
    ],
)
def test_what_is_no_graphql_request_is_refused(api, body, status):
    """Even then the answer has the shape of GraphQL's."""
    response = api.http.request("POST", f"{api.base}/graphql", body=body)
    assert response.status == status
    assert response.json()["errors"]


def test_a_name_of_an_operation_is_taken(api):
    """Other clients than spacectl send one."""
    body = {
        "query": "query a{viewer{id}} query b{viewer{name}}",
        "operationName": "b",
        "variables": None,
    }
    response = api.http.request(
        "POST",
        f"{api.base}/graphql",
        body=json.dumps(body),
        headers={"Authorization": f"Bearer {api.jwt}"},
    )
    assert response.json() == {"data": {"viewer": {"name": "ci"}}}


def test_the_server_says_that_it_is_there(site):
    """For load balancers and probes."""
    assert site.http.request("GET", f"{site.base}/healthz").status == 200
