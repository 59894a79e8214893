"""Policies of the control plane: what they are asked, and what follows for runs."""

import json

import pytest
import sqlalchemy as sa

from controlplane.site import (
    APPROVE,
    DENY,
    WARN,
    Refused,
    configuration,
    eventually,
    policy,
    running,
    stack,
)
from controlplane.spacectl import predicate
from launcher.controlplane.desired_state import Retention
from launcher.controlplane.store import tables as t
from launcher.errors import ConfigurationError


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("TRACKED", id="[capability 211] tracked"),
        pytest.param("PROPOSED", id="[capability 211] proposed"),
    ],
)
def test_a_denied_plan_fails_the_run(judged, api, kind):
    """Nothing is applied or handed over, and the reason is in note and log."""
    site = judged(DENY, autodeploy=True)
    run = api.trigger(type=kind)
    held = site.worker().take()
    answer = held.planned()
    assert (answer["next"], answer["denied"]) == ("finish", True)
    held.settle("finished")
    newest = api.history(run)[0]
    sentence = "denied by a plan policy: no-nulls: null_resource.a is not wanted"
    assert (newest["state"], newest["note"]) == ("FAILED", sentence)
    assert api.read_log(run, "FAILED") == f"{sentence}\n"


def test_a_plan_that_no_policy_minds_goes_on(judged, api):
    """[capability 211] Deleting is something else than creating."""
    site = judged(
        policy("no-deletes", 'deny["x"] { count(deleted_resources) > 0 }'),
        autodeploy=True,
    )
    run = api.trigger()
    held = site.worker().take()
    assert held.planned()["next"] == "apply"
    held.applied()
    assert api.state(run) == "FINISHED"


def test_a_warning_asks_for_a_person(judged, api):
    """[capability 85] Autodeploy does not apply what a policy warns of."""
    site = judged(WARN, autodeploy=True)
    run = api.trigger()
    held = site.worker().take()
    assert held.planned()["next"] == "hand_over"
    held.store()
    held.settle("handed_over")
    newest = api.history(run)[0]
    assert newest["state"] == "UNCONFIRMED"
    assert newest["note"] == "warned by a plan policy: careful: look at it"
    api.change("confirm", run)


def test_what_a_plan_policy_is_asked(judged, api, spacectl):
    """[capability 211] [capability 212] Run, stack, changes, and what hooks have left."""
    site = judged(policy("asked", "sample { true }"), labels=["a"])
    run = api.trigger(metadata="why")
    held = site.worker().take()
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    change = {
        "action": "replaced",
        "address": 'module.m.aws_x.y["a.b"]',
        "type": "aws_x",
        "name": "y",
        "provider": "registry.example/aws",
        "before": {"size": "a1b2c3d4"},
        "after": {"size": "e5f60718", "tags": ["(sensitive)"]},
    }
    held.post(
        "plan",
        {"has_changes": True, "changes": [change], "custom": {"scan": {"high": 3}}},
    )
    (record,) = spacectl("Q.policySamples", policyId="asked")["policy"][
        "evaluationRecords"
    ]
    assert record["outcome"] == "allow"
    sample = spacectl("Q.policySample", policyId="asked", key=record["key"])
    sample = sample["policy"]["evaluationSample"]
    assert sample["body"].startswith("package spacelift")
    asked = json.loads(sample["input"])
    assert asked["third_party_metadata"] == {"custom": {"scan": {"high": 3}}}
    (resource,) = asked["terraform"]["resource_changes"]
    assert resource["change"]["actions"] == ["delete", "create"]
    assert resource["change"]["before"] == change["before"]
    assert resource["change"]["after"] == change["after"]
    assert (resource["address"], resource["name"]) == (change["address"], "y")
    assert resource["provider_name"] == "registry.example/aws"
    # Policies have seen them; nobody else finds them in the database.
    with site.plane.store.read() as connection:
        for table in t.metadata.sorted_tables:
            rows = connection.execute(sa.select(table)).all()
            assert "a1b2c3d4" not in repr(rows), table.name
    repeated = {
        "has_changes": True,
        "changes": [change],
        "custom": {"scan": {"high": 3}},
    }
    assert held.post("plan", repeated)["next"] == "hand_over"
    assert asked["ansible"] is None
    about = asked["spacelift"]
    assert set(about) == {"commit", "request", "run", "stack"}
    assert (about["run"]["id"], about["run"]["type"]) == (run, "TRACKED")
    assert about["run"]["user_provided_metadata"] == ["why"]
    assert about["stack"]["labels"] == ["a"]
    assert about["commit"]["hash"] == held.job["run"]["commit"]["hash"]
    assert spacectl("Q.policySample", policyId="asked", key="nope") == {
        "policy": {"evaluationSample": None}
    }


def test_a_plan_policy_knows_the_run_before(judged, api):
    """[capability 212] The tracked run that the stack had before, and nothing the first time."""
    body = """previous := input.spacelift.previous_run
deny["the first"] { not previous }
deny[previous.id] { previous.state == "FAILED" }
deny[why] { why := previous.user_provided_metadata[_] }
deny[address] { address := previous.changes[_].entity.address }
"""
    worker = judged(policy("again", body)).worker()

    def denials():
        held = worker.take()
        assert held.planned()["denied"]
        held.settle("finished")
        _, _, said = api.history(held.run)[0]["note"].partition(": ")
        return {each.removeprefix("again: ") for each in said.split("; ")}

    first = api.trigger(metadata="why")
    assert denials() == {"the first"}
    api.trigger(type="PROPOSED")
    assert denials() == {first, "why", "null_resource.a"}
    second = api.trigger()
    assert denials() == {first, "why", "null_resource.a"}, "a preview does not count"
    api.trigger()
    assert denials() == {second, "null_resource.a"}


def test_a_policy_that_fails_denies(judged, api):
    """[capability 215] Nobody knows what it would have said."""
    site = judged(policy("broken", "deny = x { x := input.spacelift.run.id }"))
    run = api.trigger()
    held = site.worker().take()
    assert held.planned()["next"] == "finish"
    held.settle("finished")
    assert api.history(run)[0]["note"].endswith("broken: it could not be evaluated")


def test_flags_reach_policies_of_other_types(judged, api):
    """[capability 214] What a plan policy notes, an approval policy reads, until reset."""
    site = judged(
        policy("noting", 'flag["big"] { true }\nreset_flag["old"] { true }'),
        policy(
            "reading",
            'approve { input.run.flags[_] == "big" }\n'
            'approve { input.run.state == "QUEUED" }',
            "approval",
        ),
    )
    run = api.trigger()
    site.worker().take().handed_over()
    eventually(lambda: not site.plane.runs._seen(api.slug, run).needs_approval)
    assert site.plane.runs._seen(api.slug, run).flags == ["big"]


def test_an_approval_is_waited_for(judged, api, spacectl):
    """[capability 83] [capability 213] In QUEUED, and again in UNCONFIRMED."""
    site = judged(APPROVE)
    worker = site.worker()
    review = lambda run, decision="APPROVE", note="ok": spacectl(  # noqa: E731
        "M.runReview", stack=site.slug, run=run, decision=decision, note=note
    )["runReview"]["id"]
    run = api.trigger()
    eventually(lambda: site.plane.runs._seen(api.slug, run).needs_approval)
    assert worker.poll(0.1) is None
    (row,) = spacectl("Q.runsJSON", stackId=site.slug, before=None)["stack"]["runs"]
    assert row["needsApproval"]
    assert review(run)
    held = worker.take()
    with pytest.raises(Refused, match="PREPARING is not reviewed"):
        review(run)
    held.handed_over()
    with pytest.raises(Refused, match="has not approved"):
        api.change("confirm", run)
    assert review(None), "the blocker is what is meant"
    api.change("confirm", run)
    worker.take().applied()
    outcomes = [
        record["outcome"]
        for record in spacectl("Q.policySamples", policyId="two-eyes")["policy"][
            "evaluationRecords"
        ]
    ]
    assert outcomes == ["approve", "undecided", "approve", "undecided"]
    with pytest.raises(Refused, match="not found"):
        review("01NOPE")


def test_an_approved_run_keeps_its_place_in_the_queue(judged, api, spacectl):
    """Who was triggered first is first, though others were ready before."""
    site = judged(APPROVE)
    older, younger = (api.trigger(type="PROPOSED") for _ in range(2))
    for run in (younger, older):
        eventually(lambda run=run: site.plane.runs._seen(api.slug, run).needs_approval)
        spacectl("M.runReview", stack=site.slug, run=run, decision="APPROVE", note="")
        eventually(lambda run=run: api.state(run) == "READY")
    assert [site.worker().take().run for _ in range(2)] == [older, younger]


def test_a_rejection_fails_the_run_at_once(judged, api, spacectl):
    """[capability 213] And the next one's turn comes."""
    site = judged(APPROVE)
    run = api.trigger()
    eventually(lambda: site.plane.runs._seen(api.slug, run).needs_approval)
    spacectl("M.runReview", stack=site.slug, run=run, decision="REJECT", note="")
    newest = api.history(run)[0]
    sentence = "rejected by the approval policy two-eyes"
    assert (newest["state"], newest["note"]) == ("FAILED", sentence)


def test_a_preview_with_warnings_is_reviewed(judged, api, spacectl):
    """[capability 88] It ends when all approval policies approve."""
    site = judged(
        WARN,
        policy(
            "later",
            'approve { input.run.state == "QUEUED" }\n'
            "approve { count(input.reviews.current.approvals) > 0 }",
            "approval",
        ),
    )
    run = api.trigger(type="PROPOSED")
    held = site.worker().take()
    held.planned()
    held.settle("finished")
    assert api.state(run) == "PENDING_REVIEW"
    spacectl("M.runReview", stack=site.slug, run=run, decision="APPROVE", note="")
    assert api.states(run)[-2:] == ["PENDING_REVIEW", "FINISHED"]


def test_policies_are_attached_by_label(judged, api, spacectl):
    """[capability 218] To all stacks, or to those with the label; shown with the stack."""
    everywhere = policy("everywhere", "", labels=["autoattach:*"])
    some = policy("some", "", labels=["autoattach:prod"])
    others = policy("others", "", labels=["autoattach:dev"])
    site = judged(everywhere, some, others, labels=["prod"])
    shown = spacectl("Q.stackShowFull", stackId=site.slug)["stack"]
    assert shown["attachedPolicies"] == [
        {"policyId": "everywhere", "policyName": "everywhere", "policyType": "PLAN"},
        {"policyId": "some", "policyName": "some", "policyType": "PLAN"},
    ]


def test_policies_are_listed_and_shown(judged, spacectl):
    """Pages, a search, and null for what does not exist."""
    judged(DENY, {**WARN, "description": "Look twice", "labels": ["x"]}, APPROVE)

    def found(**changes):
        given = {
            "first": 50,
            "after": None,
            "fullTextSearch": None,
            "predicates": None,
            "orderBy": None,
            **changes,
        }
        page = spacectl("Q.searchPolicies", input=given)["searchPolicies"]
        return [edge["node"]["id"] for edge in page["edges"]], page["pageInfo"]

    assert found()[0] == ["careful", "no-nulls", "two-eyes"]
    names, info = found(first=2)
    assert info["hasNextPage"]
    assert found(first=2, after=info["endCursor"])[0] == ["two-eyes"]
    assert found(fullTextSearch="TWICE")[0] == ["careful"]
    shown = spacectl("Q.policy", policyId="careful")["policy"]
    assert (shown["type"], shown["labels"]) == ("PLAN", ["x"])
    assert shown["body"] == WARN["body"]
    assert spacectl("Q.policy", policyId="nope") == {"policy": None}


def test_samples_are_bounded_and_searched(judged, api, spacectl):
    """[capability 207] The newest so many, by outcome."""
    site = judged(
        policy(
            "rare",
            'sample { true }\ndeny["x"] { input.third_party_metadata.custom.no }',
        )
    )
    worker = site.worker()
    for custom in ({}, {"no": True}, {"no": True}):
        api.trigger(type="PROPOSED")
        held = worker.take()
        held.enter("INITIALIZING")
        held.enter("PLANNING")
        held.post("plan", {"has_changes": False, "custom": custom})
        held.settle("finished")

    def page(*outcomes, **changes):
        given = {
            "first": 1,
            "after": None,
            "fullTextSearch": None,
            "predicates": [predicate("outcome", *outcomes)] if outcomes else None,
            "orderBy": {"field": "createdAt", "direction": "DESC"},
            **changes,
        }
        return spacectl("Q.policySamplesIndexed", id="rare", input=given)["policy"][
            "searchEvaluationRecords"
        ]

    site.plane.retention.apply(Retention(samples=2))
    first = page()
    assert first["pageInfo"]["hasNextPage"]
    second = page(after=first["pageInfo"]["endCursor"])
    assert not second["pageInfo"]["hasNextPage"]
    assert page("allow")["edges"] == [], "the oldest is gone"
    assert page("deny")["edges"] == first["edges"]
    site.plane.retention.apply(Retention(samples_days=-1))
    assert page()["edges"] == []


@pytest.mark.parametrize(
    ("body", "given", "kind", "sentence"),
    [
        ("package other", "{}", "PLAN", "package spacelift"),
        ("package spacelift\ndeny {", "{}", "PLAN", "line 2"),
        ("package spacelift", "[]", "PLAN", "not a JSON object"),
        ("package spacelift", "{", "PLAN", "not JSON"),
        ("package spacelift", "{}", "TRIGGER", "not evaluated here"),
        ("#" * 300_000, "{}", "PLAN", "at most"),
        (
            'package spacelift\ndeny["x"] { http.send({}) }',
            "{}",
            "PLAN",
            "http.send is not available",
        ),
        ('package spacelift\ndeny["x"] { exec(["id"]) }', "{}", "PLAN", "exec"),
        ("package spacelift\napprove := 1", "{}", "APPROVAL", "neither true nor false"),
    ],
)
def test_what_cannot_be_simulated_is_said(spacectl, body, given, kind, sentence):
    """[capability 203] [capability 205] No policy here starts programs or connections."""
    with pytest.raises(Refused, match=sentence):
        spacectl("M.policySimulate", body=body, input=given, type=kind)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('deny["no"] { input.a == 1 }', id="[capability 202] v0"),
        pytest.param('deny contains "no" if input.a == 1', id="[capability 202] v1"),
    ],
)
def test_a_policy_is_simulated(spacectl, body):
    """[capability 206] What is not said is empty or false; both dialects are read."""
    said = spacectl(
        "M.policySimulate",
        body=f"package spacelift\n{body}",
        input='{"a":1}\n',
        type="PLAN",
    )["policySimulate"]
    assert json.loads(said) == {
        "deny": ["no"],
        "flag": [],
        "reset_flag": [],
        "sample": False,
        "warn": [],
    }


def test_a_wrong_policy_refuses_the_whole_file(tmp_path, repository):
    """With its name, and the line in it."""
    given = configuration([stack(repository)], policies=[policy("bad", "deny {")])
    with pytest.raises(ConfigurationError, match="policy 'bad': line 2"):
        with running(tmp_path, given):
            pass


def test_what_waits_for_an_approval_is_not_forgotten(tmp_path, repository):
    """A run that nobody has asked about before a crash is asked about after it."""
    always = policy("always", "approve { true }", "approval")
    given = configuration([stack(repository, policies=["always"])], policies=[always])
    with running(tmp_path, given) as site:
        api = site.api()
        site.plane.approvals._policies.ask = lambda *_, **__: (_ for _ in ()).throw(
            RuntimeError("killed")
        )
        run = api.trigger()
        eventually(lambda: site.plane.runs._seen(api.slug, run).needs_approval)
    with running(tmp_path, given) as site:
        api = site.api()
        eventually(lambda: api.state(run) == "READY")
