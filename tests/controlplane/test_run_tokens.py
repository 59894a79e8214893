"""What runs prove who they are with: to the control plane, and to clouds."""

import base64
import json
import time

import jwt
import pytest

from controlplane.site import Refused, configuration, eventually, running, stack
from launcher.controlplane.identity_provider import checked_subject
from launcher.controlplane.services import Limits
from launcher.sealing import box
from launcher.wire.messages import for_tokens
from support.pool_keys import KEY


READ = "query($id:ID!){stack(id: $id){id,name,runs{id,state}}}"


def configured(site, origin, **changes):
    pools = [{"name": site.pool}, {"name": "other"}]
    stacks = [
        stack(origin, site.slug, worker_pool=site.pool, **changes),
        stack(origin, f"{site.slug}-other", worker_pool=site.pool),
    ]
    site.apply(configuration(stacks, worker_pools=pools))


def fetched(site, path):
    """What anybody gets from *path*."""
    response = site.http.request("GET", site.base + path)
    assert response.status == 200
    return response.json()


def verified(site, token):
    """Claims of a token, verified as a cloud does it: from the issuer's address alone."""
    found = fetched(site, "/.well-known/openid-configuration")
    keys = jwt.PyJWKSet.from_dict(
        fetched(site, found["jwks_uri"].removeprefix(found["issuer"]))
    )
    header = jwt.get_unverified_header(token)
    return jwt.decode(
        token,
        keys[header["kid"]].key,
        algorithms=found["id_token_signing_alg_values_supported"],
        audience="127.0.0.1",
        issuer=found["issuer"],
    )


def as_run(site, held):
    """A client inside of the run."""
    client = site.stranger()
    client.jwt = held.job["tokens"]["api"]
    return client


def refreshed(held):
    """Tokens that the holder of a job asks for."""
    answer = held.worker("POST", f"{held.path}/tokens", token=held.token)
    sealed = base64.b64decode(answer["sealed_tokens"])
    purpose = for_tokens(held.job["id"])
    return json.loads(box.opened(sealed, purpose=purpose, key=KEY))


def test_claims(site, api, worker, repository):
    """[capability 130] A token says what the documentation lists, and can be verified."""
    run = api.trigger(type="PROPOSED")
    held = worker.take()
    before = int(time.time())
    claims = verified(site, held.job["tokens"]["oidc"])
    slug = site.slug
    assert claims.pop("jti")
    issued = claims.pop("iat")
    assert before - 60 <= issued <= before + 1
    assert (issued, issued + 3600) == (claims.pop("nbf"), claims.pop("exp"))
    assert {
        "iss": site.base,
        "aud": "127.0.0.1",
        "sub": f"space:root:stack:{slug}:run_type:PROPOSED:scope:read",
        "spaceId": "root",
        "callerType": "stack",
        "callerId": slug,
        "runType": "PROPOSED",
        "runId": run,
        "scope": "read",
    } == claims
    assert 2400 == held.job["tokens"]["refresh_seconds"]


def test_scopes(site, api, worker, repository):
    """[capability 130] A confirmed plan reads and its apply writes; autodeploy writes."""
    run = api.trigger()
    held = worker.take()
    assert "read" == verified(site, held.job["tokens"]["oidc"])["scope"]
    held.handed_over()
    api.change("confirm", run)
    apply = worker.take()
    assert "write" == verified(site, apply.job["tokens"]["oidc"])["scope"]
    apply.applied()
    configured(site, repository, autodeploy=True)
    api.trigger()
    assert "write" == verified(site, worker.take().job["tokens"]["oidc"])["scope"]


def test_a_claim_again_gets_the_same_tokens(site, api, worker, repository):
    """Repeating a claim is harmless: nothing about its answer changes."""
    api.trigger()
    offer = worker.poll()
    first = worker.claim(offer["job"])
    again = worker.claim(offer["job"])
    assert first == again


def test_subject_and_issuer(site, api, worker, repository):
    """[capability 131] The subject's template and the issuer are the operator's choice."""
    oidc = {
        "issuer": "https://issuer.example/spacelift",
        "jwks_uri": "https://keys.example/jwks.json",
        "subject": "{spacePath}/{callerId}/{runId}/{runType}/{scope}",
    }
    pools = [{"name": site.pool}, {"name": "other"}]
    one = stack(repository, site.slug, worker_pool=site.pool)
    site.apply(configuration([one], worker_pools=pools, oidc=oidc))
    try:
        run = api.trigger()
        claims = jwt.decode(
            worker.take().job["tokens"]["oidc"], options={"verify_signature": False}
        )
        assert (oidc["issuer"], "issuer.example") == (claims["iss"], claims["aud"])
        assert f"root/{site.slug}/{run}/TRACKED/read" == claims["sub"]
        found = fetched(site, "/.well-known/openid-configuration")
        assert (oidc["issuer"], oidc["jwks_uri"]) == (
            found["issuer"],
            found["jwks_uri"],
        )
    finally:
        site.apply(configuration([one], worker_pools=pools))


@pytest.mark.parametrize(
    "template",
    ["no placeholder", "{unknown}", "{callerId", "{callerId!r}", "{callerId.x}", "{}"],
)
def test_subjects_that_are_refused(template):
    """[capability 131] A template that would make no difference, or no sense, is refused."""
    with pytest.raises(ValueError, match="placeholder"):
        checked_subject(template)


def test_fresh_tokens(site, api, worker, repository):
    """[capability 130] Whoever holds the job gets new ones; whoever does not, none."""
    api.trigger()
    held = worker.take()
    first, second = held.job["tokens"], refreshed(held)
    ids = [verified(site, each["oidc"])["jti"] for each in (first, second)]
    assert 2 == len(set(ids))
    assert first["api"] != second["api"]
    refusal = worker.refused("POST", f"{held.path}/tokens", token="somebody else's")
    assert (409, "stale_token") == refusal
    held.settle("failed")
    refusal = worker.refused("POST", f"{held.path}/tokens", token=held.token)
    assert (409, "stale_token") == refusal


def test_the_api_while_the_run_goes_on(site, api, worker, repository):
    """[capability 129] A run may read about its stack until it ends, and no longer."""
    configured(site, repository)
    run = api.trigger()
    held = worker.take()
    inside = as_run(site, held)
    claims = jwt.decode(inside.jwt, options={"verify_signature": False})
    assert site.base == claims["aud"]
    assert 3 * 3600 == claims["exp"] - claims["iat"]
    assert f"{site.base}/graphql" == held.job["tokens"]["graphql_endpoint"]

    assert {"viewer": {"id": f"run::{run}", "name": run}} == inside("{viewer{id,name}}")
    (own,) = inside(READ, {"id": site.slug})["stack"]["runs"]
    assert (run, "PREPARING") == (own["id"], own["state"])
    assert inside.state(run) == "PREPARING"
    held.handed_over()

    with pytest.raises(Refused, match="unauthorized"):
        inside(READ, {"id": site.slug})
    api.change("confirm", run)
    apply = worker.take()
    later = as_run(site, apply)
    assert later(READ, {"id": site.slug})["stack"]["id"] == site.slug
    with pytest.raises(Refused, match="unauthorized"):
        inside(READ, {"id": site.slug})  # of the job before
    apply.applied()
    with pytest.raises(Refused, match="unauthorized"):
        later(READ, {"id": site.slug})


FORBIDDEN = {
    "another stack": '{stack(id: "%s-other"){id}}',
    "another stack by an alias": '{a: stack(id: "%s"){id} b: stack(id: "%s-other"){id}}',
    "all stacks": "{stacks{id}}",
    "a search": "query{searchStacks(input: {first: 5}){edges{node{id}}}}",
    "worker pools": "{workerPools{id}}",
    "a trigger": 'mutation{runTrigger(stack: "%s"){id}}',
    "a confirmation": 'mutation{runConfirm(stack: "%s", run: "%s"){id}}',
    "a stop": 'mutation{runStop(stack: "%s", run: "x"){id}}',
    "a sign-in": 'mutation{apiKeyUser(id: "ci", secret: "hunter2-of-the-key"){jwt}}',
}


@pytest.fixture(name="busy", scope="module")
def _busy(tmp_path_factory, repository):
    """A run that goes on, and a client inside of it."""
    folder = tmp_path_factory.mktemp("busy")
    slug = "busy"
    stacks = [stack(repository, slug), stack(repository, "busy-other")]
    with running(folder, configuration(stacks)) as site:
        site.slug = slug
        api, worker = site.api(), site.worker()
        other = api.trigger("busy-other")
        worker.take()
        api.trigger()
        yield site, as_run(site, worker.take()), other


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_run_may_not_do(busy, what):
    """[capability 129] A run reads about its own stack, and does nothing else."""
    site, inside, _ = busy
    document = FORBIDDEN[what]
    with pytest.raises(Refused, match="unauthorized"):
        inside(document % ((site.slug,) * document.count("%s")))


def test_runs_of_other_stacks(busy):
    """[capability 129] By a run's id, too, nothing is learned about another stack."""
    site, inside, other = busy
    document = "query($id:ID!){runStack(runId: $id){id}}"
    with pytest.raises(Refused, match="unauthorized"):
        inside(document, {"id": other})
    mine = inside(READ, {"id": site.slug})["stack"]["runs"][0]["id"]
    assert {"runStack": {"id": site.slug}} == inside(document, {"id": mine})


def test_a_forged_token(site, api, worker, repository):
    """[capability 129] A token that somebody else has signed is worth nothing."""
    api.trigger()
    held = worker.take()
    claims = jwt.decode(held.job["tokens"]["api"], options={"verify_signature": False})
    forger = site.stranger()
    for key, algorithm in (("x" * 32, "HS256"), ("", "none")):
        forger.jwt = jwt.encode(claims, key, algorithm=algorithm)
        with pytest.raises(Refused, match="unauthorized"):
            forger(READ, {"id": site.slug})


def test_the_signing_key_is_never_in_the_clear(tmp_path, repository):
    """[capability 130] Neither database nor data directory holds the key unsealed."""
    given = configuration([stack(repository)])
    with running(tmp_path, given) as site:
        first = fetched(site, "/.well-known/jwks")
        modulus = base64.urlsafe_b64decode(first["keys"][0]["n"] + "==")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert modulus not in content, file
    (key,) = tmp_path.rglob("oidc-key")
    assert 0o600 == key.stat().st_mode & 0o777
    with running(tmp_path, given) as site:
        assert first == fetched(site, "/.well-known/jwks")


def test_short_lives(tmp_path, repository):
    """[capability 130] A token ends when it says so, and is to be replaced before."""
    given = configuration([stack(repository)])
    with running(tmp_path, given, Limits(oidc_seconds=3)) as site:
        api, worker = site.api(), site.worker()
        api.trigger()
        held = worker.take()
        first = held.job["tokens"]["oidc"]
        assert 2 == held.job["tokens"]["refresh_seconds"]

        def expired():
            try:
                verified(site, first)
            except jwt.ExpiredSignatureError:
                return True

        eventually(expired)
        assert "read" == verified(site, refreshed(held)["oidc"])["scope"]
