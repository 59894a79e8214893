"""Two who want the same thing at once: one gets it, the other is told."""

import threading

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from controlplane.site import Refused, configuration, eventually, running, stack
from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import RequestRefused


def at_once(*calls):
    """Begin all *calls* at the same moment and return what each returned or raised."""
    barrier = threading.Barrier(len(calls))

    def begin(call):
        barrier.wait()
        try:
            return call()
        except (Refused, RequestRefused) as exc:
            return exc

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(begin, c) for c in calls]]


def test_a_job_is_claimed_by_one(site, api, worker):
    """However many try, one has it and the others know."""
    others = [site.worker(slot=slot) for slot in range(1, 6)]
    for _ in range(5):
        run = api.trigger()
        job = worker.poll()["job"]

        def claim(one, job=job):
            body = {"worker": one.id, "claim": f"by-{one.slot}"}
            response = one.raw("POST", f"/jobs/{job}/claim", body)
            return response.status, response.json()

        answers = at_once(*[lambda one=one: claim(one) for one in (worker, *others)])
        assert Counter(status for status, _ in answers) == {200: 1, 409: 5}
        token = next(answer["token"] for status, answer in answers if status == 200)
        body = {"verdict": "failed", "log_length": 0}
        worker("POST", f"/jobs/{job}/settle", body, token=token)
        assert api.state(run) == "FAILED"


def test_confirm_and_discard_do_not_both_happen(site, api, worker):
    """One wins, the other gets a sentence, and the history knows one of them."""
    for _ in range(8):
        run = api.trigger()
        worker.take().handed_over()
        answers = at_once(
            lambda: api.change("confirm", run),  # noqa: B023
            lambda: api.change("discard", run),  # noqa: B023
            lambda: api.change("confirm", run),  # noqa: B023
        )
        refusals = [str(answer) for answer in answers if isinstance(answer, Refused)]
        assert len(refusals) == 2
        assert all("a run that is" in sentence for sentence in refusals)
        states = api.states(run)
        assert states.count("CONFIRMED") + states.count("DISCARDED") == 1
        if states[-1] == "CONFIRMED":
            worker.take().settle("failed")


def test_many_triggers_make_one_active_run(site, api):
    """The lock of the stack is taken once, whatever is triggered at the same time."""
    runs = at_once(*[api.trigger] * 8)
    assert len(set(runs)) == 8
    eventually(
        lambda: Counter(map(api.state, runs)) == {"READY": 1, "QUEUED": 7},
        "exactly one run should have become READY",
    )


def test_the_same_bytes_from_two_uploads_are_stored_once(site, api, worker):
    """A launcher that retries while the first try is still under way does no harm."""
    api.trigger()
    held = worker.take()
    data = b"x" * 200_000
    path = f"{held.path}/log?offset=0"
    put = lambda: worker("PUT", path, data, token=held.token)["next_offset"]  # noqa: E731
    assert set(at_once(*[put] * 6)) == {len(data)}
    held.offset = len(data)
    held.enter("INITIALIZING")
    assert api.read_log(held.run, "PREPARING") == data.decode()


def test_two_workers_on_a_queue_lose_nothing(tmp_path, repository):
    """Every run of several stacks is done exactly once by whoever is free."""
    slugs = [f"s{number}" for number in range(4)]
    given = configuration([stack(repository, slug) for slug in slugs])
    with running(tmp_path, given) as site:
        api, first = site.api(), site.worker()
        workers = [first, site.worker(slot=1)]
        runs = {api.trigger(slug): slug for slug in slugs for _ in range(3)}
        done = []

        def work(one):
            while (offer := one.poll(0.4)) is not None:
                body = {"worker": one.id, "claim": offer["job"]}
                response = one.raw("POST", f"/jobs/{offer['job']}/claim", body)
                if response.status == 200:
                    done.append(offer["run"])
                    settled = {"verdict": "failed", "log_length": 0}
                    path = f"/jobs/{offer['job']}/settle"
                    one("POST", path, settled, token=response.json()["token"])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, workers))
        assert sorted(done) == sorted(runs)
        assert {api.state(run, slug) for run, slug in runs.items()} == {"FAILED"}


def test_the_services_need_no_event_loop(site):
    """What decides is plain code: called from here, without HTTP."""
    actor = Actor.of_api_key("test")
    run = site.plane.runs.trigger(site.slug, actor).id
    eventually(lambda: site.plane.queries.history(run)[0]["state"] == "READY")
    site.plane.runs.cancel(site.slug, run, actor)
    assert site.plane.queries.history(run)[0]["state"] == "CANCELED"


def test_changes_of_one_stack_are_never_in_each_others_way(site, api, worker, capsys):
    """Whoever ends a run and whoever ends the next one lock things in the same order."""
    for _ in range(12):
        first, second = api.trigger(), api.trigger()
        held = worker.take()
        assert held.run == first
        eventually(lambda: not site.plane.runs.without_commit())
        at_once(
            lambda held=held: held.settle("failed"),
            lambda second=second: api.change("cancel", second),
        )
        assert api.state(first) == "FAILED"
        assert api.state(second) == "CANCELED"
    assert "database.collided" not in capsys.readouterr().out
