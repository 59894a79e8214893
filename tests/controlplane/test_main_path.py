"""A run from trigger to finish, seen from both sides."""


def test_a_confirmed_run_is_planned_and_applied(api, worker):
    """A tracked run is planned, waits, is confirmed, and is applied by a second job."""
    run = api.trigger(metadata="deploy-metadata")
    planning = worker.take()
    assert planning.job["phases"] == ["initialize", "plan"]
    assert planning.job["run"]["state"] == "PREPARING"
    assert planning.job["run"]["user_provided_metadata"] == ["deploy-metadata"]
    assert planning.job["restores_workspace"] is False
    planning.handed_over()
    assert api.state(run) == "UNCONFIRMED"

    api.change("confirm", run)
    applying = worker.take()
    assert applying.job["phases"] == ["apply"]
    assert applying.job["run"]["state"] == "PREPARING_APPLY"
    assert applying.job["restores_workspace"] is True
    assert applying.job["run"]["changes"] == [
        {
            "action": "added",
            "entity": {"address": "null_resource.a", "type": "null_resource"},
            "phase": "plan",
        }
    ]
    applying.applied()
    assert api.states(run) == [
        "QUEUED",
        "READY",
        "PREPARING",
        "INITIALIZING",
        "PLANNING",
        "UNCONFIRMED",
        "CONFIRMED",
        "PREPARING_APPLY",
        "APPLYING",
        "FINISHED",
    ]
    texts = {
        "PREPARING": "preparing\n",
        "INITIALIZING": "initializing\n",
        "PLANNING": "planning\n",
        "PREPARING_APPLY": "preparing apply\n",
        "APPLYING": "applying\n",
    }
    assert texts == {state: api.read_log(run, state) for state in texts}
