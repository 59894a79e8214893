"""What each type of run consists of, and which runs wait for which."""

import pytest

from controlplane.site import Refused, eventually, running, stack, configuration


def scopes(job):
    return {variable["name"]: variable["scope"] for variable in job["environment"]}


SCOPED = [
    {"name": "A", "value": "1"},
    {"name": "ro_R", "value": "2"},
    {"name": "wo_W", "value": "3"},
]


def task(api, command="terraform state list", noinit=False):
    document = (
        "mutation($c:String!$n:Boolean$s:ID!)"
        "{taskCreate(stack: $s, command: $c, skipInitialization: $n){id}}"
    )
    return api(document, {"s": api.slug, "c": command, "n": noinit})["taskCreate"]["id"]


@pytest.mark.parametrize(
    ("noinit", "phases", "states"),
    [
        pytest.param(
            False,
            ["initialize", "perform"],
            ["QUEUED", "READY", "PREPARING", "INITIALIZING", "PERFORMING", "FINISHED"],
            id="[capability 74]",
        ),
        pytest.param(
            True,
            ["perform"],
            ["QUEUED", "READY", "PREPARING", "PERFORMING", "FINISHED"],
            id="[capability 74] without initializing",
        ),
    ],
)
def test_a_task_performs_a_command(site, api, repository, noinit, phases, states):
    """It has the variables of both scopes, of which the launcher picks some."""
    site.configure(repository, environment=SCOPED)
    run = task(api, "ls -la", noinit)
    held = site.worker().take()
    job = held.job
    assert (job["run"]["type"], job["run"]["command"]) == ("TASK", "ls -la")
    assert (job["phases"], job["skip_init"]) == (phases, noinit)
    assert scopes(job) == {"A": "always", "R": "read", "W": "write"}
    held.performed()
    assert api.states(run) == states
    assert api.read_log(run, "PERFORMING") == "performing\n"


@pytest.mark.parametrize("command", ["", "  \n", "a\0b", "x" * 40000])
def test_a_task_needs_a_command(api, command):
    """One that a shell can be given."""
    with pytest.raises(Refused, match="command"):
        task(api, command)


def test_a_test_is_one_job(site, api, repository):
    """[capability 75] It plans, applies whatever the plan says, and destroys."""
    site.configure(repository, environment=SCOPED)
    run = api.trigger(type="TESTING")
    held = site.worker().take()
    assert held.job["phases"] == ["initialize", "plan", "apply", "destroy"]
    assert scopes(held.job) == {"A": "always", "R": "read"}
    answer = held.planned(changes=False)
    assert answer["next"] == "apply"
    assert [each["name"] for each in answer["environment"]] == ["W"]
    held.enter("APPLYING")
    status, code = held.refused(
        "settle", {"verdict": "finished", "log_length": held.offset}
    )
    assert (status, code) == (409, "wrong_state"), "nothing was destroyed yet"
    held.destroyed()
    assert api.states(run)[-4:] == ["PLANNING", "APPLYING", "DESTROYING", "FINISHED"]


def test_a_test_that_fails_is_destroyed_all_the_same(api, worker):
    """[capability 75] The run fails then, after DESTROYING."""
    run = api.trigger(type="TESTING")
    held = worker.take()
    held.planned()
    held.enter("APPLYING")
    held.enter("DESTROYING")
    held.settle("failed", reason="apply: exit code 1")
    assert api.states(run)[-3:] == ["APPLYING", "DESTROYING", "FAILED"]


def test_a_destroy_run_waits_for_a_confirmation(site, api, repository):
    """[capability 76] What would be destroyed is shown first, then a second job does it."""
    site.configure(repository, environment=SCOPED)
    worker = site.worker()
    run = api.trigger(type="DESTROY")
    held = worker.take()
    assert held.job["phases"] == ["initialize", "plan"]
    assert scopes(held.job) == {"A": "always", "R": "read"}
    assert held.planned(changes=False)["next"] == "hand_over"
    held.store()
    held.settle("handed_over")
    assert api.state(run) == "UNCONFIRMED"
    api.change("confirm", run)
    held = worker.take()
    assert held.job["phases"] == ["destroy"]
    assert held.job["restores_workspace"]
    assert held.job["run"]["state"] == "PREPARING_APPLY"
    assert scopes(held.job) == {"A": "always", "W": "write"}
    held.destroyed()
    assert api.states(run)[-4:] == [
        "CONFIRMED",
        "PREPARING_APPLY",
        "DESTROYING",
        "FINISHED",
    ]


def test_a_job_enters_only_what_is_part_of_it(api, worker):
    """A plan cannot destroy, and a task cannot apply."""
    api.trigger(type="PROPOSED")
    held = worker.take()
    held.planned()
    for state in ("APPLYING", "DESTROYING", "PERFORMING"):
        status, code = held.refused(
            "state", {"state": state, "log_offset": held.offset}
        )
        assert (status, code) == (409, "wrong_state")
    task(api)
    held = worker.take()
    for state in ("APPLYING", "DESTROYING", "PLANNING"):
        status, code = held.refused("state", {"state": state, "log_offset": 0})
        assert (status, code) == (409, "wrong_state")


def test_a_task_that_is_stopped_in_time_performs_nothing(api, worker):
    """The request is looked at once more before anything may change."""
    run = task(api)
    held = worker.take()
    held.enter("INITIALIZING")
    api.change("stop", run)
    status, _ = held.refused("state", {"state": "PERFORMING", "log_offset": 0})
    assert status == 409
    held.settle("failed", reason="not let in")
    assert api.state(run) == "STOPPED"


def test_what_changes_things_goes_one_after_the_other(api, worker):
    """[capability 81] Tracked runs, tasks and destroy runs share the stack's lock."""
    first, second, third = api.trigger(), task(api), api.trigger(type="DESTROY")
    test = api.trigger(type="TESTING")
    held = {each.run: each for each in (worker.take(), worker.take())}
    assert set(held) == {first, test}, "a test waits for nobody"
    held[first].settle("failed")
    held = worker.take()
    assert held.run == second
    assert worker.poll(0.1) is None
    held.performed()
    assert worker.take().run == third


def test_a_replan_is_limited_to_targets(api, worker):
    """[capability 87] It plans anew, in a fresh container, and asks again."""
    run = api.trigger()
    worker.take().handed_over()
    document = (
        "mutation($r:ID!$s:ID!$t:[String!]!)"
        "{runTargetedReplan(stack: $s, run: $r, targets: $t){id}}"
    )
    variables = {"s": api.slug, "r": run, "t": ["a.b", "module.c.d[0]", "a.b"]}
    for wrong in ([], [" "], ["x\n"], ["y" * 2000]):
        with pytest.raises(Refused, match="replan|address"):
            api(document, {**variables, "t": wrong})
    api(document, variables)
    assert api.state(run) == "REPLAN_REQUESTED"
    with pytest.raises(Refused, match="cannot be planned again"):
        api(document, variables)
    held = worker.take()
    assert held.job["phases"] == ["initialize", "plan"]
    assert held.job["run"]["targets"] == ["a.b", "module.c.d[0]"]
    assert held.job["run"]["state"] == "PREPARING_REPLAN"
    assert not held.job["restores_workspace"]
    assert held.planned()["next"] == "hand_over"
    held.store(b"another workspace", upload="u-2")
    held.settle("handed_over")
    assert api.states(run)[-5:] == [
        "REPLAN_REQUESTED",
        "PREPARING_REPLAN",
        "INITIALIZING",
        "PLANNING",
        "UNCONFIRMED",
    ]
    api.change("confirm", run)
    held = worker.take()
    assert held.job["run"]["targets"] == ["a.b", "module.c.d[0]"]
    held.applied()
    assert api.state(run) == "FINISHED"


def test_a_replan_that_is_lost_fails(api, worker):
    """A worker that reports a failure ends the run, and frees the stack."""
    run, following = api.trigger(), api.trigger()
    worker.take().handed_over()
    document = (
        'mutation($r:ID!$s:ID!){runTargetedReplan(stack:$s,run:$r,targets:["a"]){id}}'
    )
    api(document, {"s": api.slug, "r": run})
    worker.take().settle("failed", reason="x")
    assert api.state(run) == "FAILED"
    assert worker.take().run == following


def test_urgent_runs_go_first(tmp_path, repository):
    """[capability 60] [capability 61] Priorities first, then classes, then age."""
    names = ["one", "two", "three", "four", "five"]
    given = configuration([stack(repository, name) for name in names])
    with running(tmp_path, given) as site:
        api = site.api()
        preview = api.trigger("one", type="PROPOSED")
        urgent = api.trigger("two", type="PROPOSED")
        test = api.trigger("three", type="TESTING")
        tracked = api.trigger("four")
        destroy = api.trigger("five", type="DESTROY")
        order = dict(zip((preview, urgent, test, tracked, destroy), names, strict=True))
        for run, name in order.items():
            eventually(lambda: api.state(run, name) == "READY")
        document = (
            "mutation($p:Boolean!$r:ID!$s:ID!)"
            "{runPrioritizeSet(stack: $s, run: $r, prioritize: $p){id}}"
        )
        for run, prioritize in [(test, True), (urgent, True), (test, False)]:
            api(document, {"s": order[run], "r": run, "p": prioritize})
        worker = site.worker()
        taken = [worker.take().run for _ in range(5)]
        assert taken[0] == urgent
        assert set(taken[1:3]) == {tracked, destroy}
        assert set(taken[3:]) == {preview, test}


def test_a_run_that_is_over_has_no_priority(api):
    """Nor has one that does not exist."""
    run = api.trigger()
    api.change("cancel", run)
    document = "mutation($r:ID!$s:ID!){runPrioritizeSet(stack: $s, run: $r, prioritize: true){id}}"
    with pytest.raises(Refused, match="waits for nobody"):
        api(document, {"s": api.slug, "r": run})
    with pytest.raises(Refused, match="not found"):
        api(document, {"s": api.slug, "r": "01NOPE"})


def test_the_newest_worker_is_served_first(site, api):
    """Of those that wait; the next job goes to the next newest."""
    import threading

    old, new = site.worker(slot=0), site.worker(slot=1)
    offers, claims = {}, site.plane.claims

    def wait(name, worker):
        offers[name] = worker.poll(15)

    threads = [
        threading.Thread(target=wait, args=pair)
        for pair in [("old", old), ("new", new)]
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(claims._idle.get(site.pool, ())) == 2)
    first = api.trigger()
    threads[1].join()
    assert offers["new"]["run"] == first
    assert "old" not in offers
    second = api.trigger(type="PROPOSED")
    threads[0].join()
    assert offers["old"]["run"] == second


def test_drift_runs_have_their_own_limit(site, api, repository):
    """[capability 62] A pool takes so many at once, or none."""
    from launcher.controlplane.actors import Actor
    from launcher.controlplane.new_runs import Order
    from launcher.wire.jobs import RunType

    def pools(limit):
        return [{"name": site.pool, "drift_run_limit": limit}, {"name": "other"}]

    one = stack(repository, site.slug, worker_pool=site.pool)
    site.apply(configuration([one], worker_pools=pools(0)))
    actor = Actor.of_api_key("ci")
    order = Order(type=RunType.PROPOSED, drift=True)
    runs = [site.plane.runs.order(site.slug, actor, order).id for _ in range(2)]
    for run in runs:
        eventually(lambda: api.state(run) == "READY")
    worker = site.worker()
    assert worker.poll(0.1) is None
    site.apply(configuration([one], worker_pools=pools(1)))
    held = worker.take()
    assert worker.poll(0.1) is None
    preview = api.trigger(type="PROPOSED")
    other = worker.take()
    assert other.run == preview, "others are not held up"
    held.settle("failed")
    assert worker.take().run in runs


def test_drift_runs_without_room_hide_nobody(site, api, repository):
    """[capability 62] However many wait in front, who is behind them is found."""
    from launcher.controlplane.actors import Actor
    from launcher.controlplane.new_runs import Order
    from launcher.controlplane.queues import queued
    from launcher.wire.jobs import RunType

    one = stack(repository, site.slug, worker_pool=site.pool)
    pools = [{"name": site.pool, "drift_run_limit": 0}, {"name": "other"}]
    site.apply(configuration([one], worker_pools=pools))
    order = Order(type=RunType.PROPOSED, drift=True)
    actor, preview = Actor.of_api_key("ci"), api.trigger(type="PROPOSED")
    runs = [site.plane.runs.order(site.slug, actor, order).id for _ in range(3)]
    eventually(lambda: {api.state(run) for run in (preview, *runs)} == {"READY"})
    for run in runs:
        site.plane.runs.prioritize(site.slug, run, actor, prioritized=True)
    with site.plane.store.read() as connection:
        found = queued(connection, site.pool, 2)
    assert [each.run for each in found] == [preview]


def test_a_run_can_bring_its_own_configuration(site, api):
    """[capability 91] It is kept with the run, and bounded."""
    document = (
        "mutation($s:ID!$c:RuntimeConfigInput)"
        "{runTrigger(stack: $s, runtimeConfig: $c){id}}"
    )

    def trigger(text):
        return api(document, {"s": api.slug, "c": {"yaml": text}})["runTrigger"]["id"]

    run = trigger("before_init: [echo]\n")
    api.change("cancel", run)
    assert (
        site.plane.runs._specs.opened_text(
            site.plane.runs._seen(api.slug, run).runtime_config
        )
        == "before_init: [echo]\n"
    )
    bomb = "a: &a [x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    deep = "a: " + "[" * 30 + "]" * 30
    for wrong in ("- a", "x" * 70000, "a: [", bomb, deep):
        with pytest.raises(Refused, match="runtime configuration"):
            trigger(wrong)
