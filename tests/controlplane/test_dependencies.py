"""Runs that wait for runs of other stacks, or for somebody outside."""

import pytest

from controlplane.site import Refused, configuration, eventually, running, stack
from controlplane.spacectl import Spacectl
from launcher.errors import ConfigurationError


def given(repository, *, always=False, extra=()):
    """network ← cluster ← app, and app refers to both."""
    url = {"output": "url", "variable": "TF_VAR_url", "trigger_always": always}
    return configuration(
        [
            stack(repository, "network"),
            stack(
                repository,
                "cluster",
                depends_on=[
                    {
                        "stack": "network",
                        "references": [{"output": "vpc", "variable": "TF_VAR_vpc"}],
                    }
                ],
            ),
            stack(
                repository,
                "app",
                depends_on=[
                    {"stack": "network"},
                    {"stack": "cluster", "references": [url]},
                ]
                if not extra
                else list(extra),
            ),
        ]
    )


def runs_of(api, slug):
    document = "query($s:ID!){stack(id: $s){runs{id,state}}}"
    return api(document, {"s": slug})["stack"]["runs"]


def deploy(api, worker, slug, outputs=(), *, sensitive=False):
    """Take the next job, which must be of *slug*, and see its run through."""
    held = worker.take()
    assert held.job["stack"]["slug"] == slug
    held.handed_over()
    api.change("confirm", held.run, slug)
    held = worker.take()
    held.enter("APPLYING")
    report = [
        {"name": name, "value": value, "sensitive": sensitive}
        for name, value in outputs
    ]
    held.post("outputs", {"outputs": report})
    held.settle("finished")
    return held


def variables(held):
    return {each["name"]: each for each in held.job["environment"]}


def test_a_deployment_goes_on_downstream(tmp_path, repository):
    """[capability 83] One run per stack, in order, with outputs as variables."""
    with running(tmp_path, given(repository)) as site:
        api, worker = site.api(), site.worker()
        first = api.trigger("network")
        for slug in ("cluster", "app"):
            (waiting,) = runs_of(api, slug)
            assert waiting["state"] == "QUEUED"
        deploy(api, worker, "network", [("vpc", '"vpc-1"')])
        assert api.state(first, "network") == "FINISHED"
        held = deploy(api, worker, "cluster", [("url", '{"a":1}')], sensitive=True)
        assert variables(held)["TF_VAR_vpc"]["value"] == "vpc-1"
        assert not variables(held)["TF_VAR_vpc"]["secret"]
        held = worker.take()
        assert held.job["stack"]["slug"] == "app"
        assert variables(held)["TF_VAR_url"]["value"] == '{"a":1}'
        assert variables(held)["TF_VAR_url"]["secret"]
        held.handed_over()
        api.trigger("cluster")
        api.change("confirm", held.run, "app")


def test_what_was_planned_with_is_applied_with(tmp_path, repository):
    """An output that changes meanwhile is the next run's."""
    with running(tmp_path, given(repository)) as site:
        api, worker = site.api(), site.worker()
        api.trigger("network")
        deploy(api, worker, "network", [("vpc", '"one"')])
        held = worker.take()
        held.handed_over()
        api.trigger("network")
        deploy(api, worker, "network", [("vpc", '"two"')])
        api.change("confirm", held.run, "cluster")
        held = worker.take()
        assert variables(held)["TF_VAR_vpc"]["value"] == "one"


def test_nothing_changed_is_skipped(tmp_path, repository):
    """[capability 83] A run whose references are as they were ends as SKIPPED."""
    with running(tmp_path, given(repository)) as site:
        api, worker = site.api(), site.worker()
        api.trigger("network")
        deploy(api, worker, "network", [("vpc", '"same"')])
        deploy(api, worker, "cluster", [("url", '"u"')])
        deploy(api, worker, "app")
        api.trigger("network")
        deploy(api, worker, "network", [("vpc", '"same"')])
        newest = runs_of(api, "cluster")[0]
        assert newest["state"] == "SKIPPED"
        history = api.history(newest["id"], "cluster")
        assert history[0]["note"] == "nothing that it depends on has changed"
        # It depends on the network as such, whatever that tells.
        deploy(api, worker, "app")


def test_a_failure_upstream_cancels(tmp_path, repository):
    """[capability 83] And frees the queue of every stack below."""
    with running(tmp_path, given(repository)) as site:
        api, worker = site.api(), site.worker()
        first = api.trigger("network")
        worker.take().settle("failed")
        for slug in ("cluster", "app"):
            (run,) = runs_of(api, slug)
            assert run["state"] == "CANCELED"
        note = api.history(runs_of(api, "cluster")[0]["id"], "cluster")[0]["note"]
        assert first in note
        own = api.trigger("cluster", type="PROPOSED")
        eventually(lambda: api.state(own, "cluster") == "READY")


def test_missing_inputs_fail_the_assignment(tmp_path, repository):
    """[capability 107] With their names, before a worker has anything to do."""
    with running(tmp_path, given(repository)) as site:
        api, worker = site.api(), site.worker()
        run = api.trigger("cluster", type="PROPOSED")
        offer = worker.poll(10)
        body = {"worker": worker.id, "claim": "c"}
        status, code = worker.refused("POST", f"/jobs/{offer['job']}/claim", body)
        assert (status, code) == (409, "taken")
        newest = api.history(run, "cluster")[0]
        assert newest["state"] == "FAILED"
        assert newest["note"] == (
            "job assignment failed: the following inputs are missing:"
            " network.vpc => TF_VAR_vpc"
        )


def test_dependencies_from_the_command_line(tmp_path, repository):
    """`stack dependencies on` and `off`."""
    with running(tmp_path, given(repository)) as site:
        spacectl = Spacectl(site.api())
        shown = spacectl("Q.stackDependencies", id="cluster")["stack"]
        assert shown["dependsOn"] == [
            {
                "stack": {"id": "cluster", "name": "Cluster"},
                "dependsOnStack": {"id": "network", "name": "Network"},
            }
        ]
        (off,) = shown["isDependedOnBy"]
        assert off["stack"]["id"] == "app"


@pytest.mark.parametrize(
    ("depends_on", "sentence"),
    [
        ([{"stack": "nope"}], "no stack 'nope'"),
        ([{"stack": "app"}], "depends on itself"),
        ([{"stack": "network"}, {"stack": "network"}], "named twice"),
        (
            [
                {
                    "stack": "network",
                    "references": [{"output": "o", "variable": "a b"}],
                }
            ],
            "'a b' is not the name of a variable",
        ),
    ],
)
def test_wrong_dependencies_are_refused(tmp_path, repository, depends_on, sentence):
    """With the line they are in."""
    wrong = given(repository, extra=depends_on)
    with pytest.raises(ConfigurationError, match=f"line .*{sentence}"):
        with running(tmp_path, wrong):
            pass


def test_a_run_waits_for_somebody_outside(site, api, spacectl, worker):
    """[capability 83] Until the dependency is completed, or fails."""
    document = (
        "mutation($s:ID!$d:[ID!]$t:RunType)"
        "{runTrigger(stack: $s, runType: $t, externalDependencies: $d){id}}"
    )

    def trigger(*names, kind="TRACKED"):
        variables = {"s": site.slug, "d": list(names), "t": kind}
        return api(document, variables)["runTrigger"]["id"]

    def complete(name, status):
        return spacectl(
            "M.runExternalDependencyMarkAsCompleted", dependency=name, status=status
        )

    one, other = f"one-{site.slug}", f"other-{site.slug}"
    run, preview = trigger(one, other), trigger(one, kind="PROPOSED")
    assert worker.poll(0.1) is None
    marked = complete(one, "FINISHED")
    assert marked == {"runExternalDependencyMarkAsCompleted": {"phantom": True}}
    assert worker.take().run == preview
    assert api.state(run) == "QUEUED"
    complete(other, "SKIPPED")
    held = worker.take()
    assert held.run == run
    held.settle("failed")
    failing = trigger(one)
    complete(one, "FAILED")
    newest = api.history(failing)[0]
    assert newest["state"] == "FAILED"
    assert newest["note"] == f"the external dependency {one!r} has failed"
    with pytest.raises(Refused, match="no run waits"):
        complete(one, "FINISHED")
    for wrong in ([""], ["a\n"], [f"d{number}" for number in range(51)]):
        with pytest.raises(Refused, match="dependenc"):
            trigger(*wrong)
