"""The pages for people, asked for without a browser."""

import asyncio
import re
import threading

from concurrent.futures import ThreadPoolExecutor

import pytest

from starlette.responses import Response

from controlplane.pages import Browser, path_of, rows
from controlplane.site import (
    ENVIRON,
    PATIENCE,
    configuration,
    eventually,
    running,
    stack,
)
from launcher.controlplane.errors import StoreAway
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.web.session import Sessions
from launcher.controlplane.web.transcript import Transcript
from launcher.controlplane.web.views import Views


SECRET = ENVIRON["CI_SECRET"]
MARKUP = "<script>alert(1)</script>\u202e"


@pytest.mark.parametrize(
    "path",
    ["/", "/stack/{slug}", "/stack/{slug}/run/{run}", "/worker-pools", "/worker-pool/x"]
    + [
        f"/stack/{{slug}}/run/{{run}}/{what}"
        for what in ("status", "events", "log.txt")
    ],
)
def test_strangers_see_a_form_only(site, path):
    """Nothing is shown to whoever is not signed in."""
    run = site.api().trigger()
    answer = Browser(site).get(path.format(slug=site.slug, run=run))
    assert answer.status == 401
    assert b'action="/sign-in"' in answer.data
    assert run.encode() not in answer.data.replace(path_of(site, run).encode(), b"")


def test_signing_in_leads_where_one_wanted_to_go(site):
    """After the sign-in comes the page that was asked for, on this host only."""
    browser = Browser(site)
    assert b'value="/worker-pools"' in browser.get("/worker-pools").data
    assert browser.sign_in(next="/worker-pools").headers["Location"] == "/worker-pools"
    for elsewhere in (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "x",
    ):
        assert browser.sign_in(next=elsewhere).headers["Location"] == "/"


def test_the_cookie_is_for_this_site_only(site):
    """No script reads it, and no other site sends it."""
    cookie = Browser(site).sign_in().headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert SECRET not in cookie


@pytest.mark.parametrize(
    ("endpoint", "secure"),
    [
        ("https://cp.example.com", True),
        ("https://127.0.0.1:8443", True),
        ("http://cp.example.com", True),
        ("http://10.0.0.7:8080", True),
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://localhost:8080", False),
    ],
)
def test_a_cookie_crosses_no_network_in_the_clear(site, endpoint, secure):
    """Off loopback browsers send it over TLS only, to this very host."""
    response = Response()
    sessions = Sessions(site.plane.sign_in, b"x", endpoint, Lanes())
    asyncio.run(sessions.begin(response, "ci", SECRET))
    cookie = response.headers["set-cookie"]
    assert ("Secure" in cookie) is secure
    assert cookie.startswith("__Host-session=" if secure else "session=")


@pytest.mark.parametrize(
    ("key", "secret"), [("ci", "wrong"), ("nobody", SECRET), ("", "")]
)
def test_a_wrong_secret_opens_nothing(site, key, secret):
    """Whoever does not know a key is told so, without a cookie."""
    answer = Browser(site).sign_in(key, secret)
    assert answer.status == 401
    assert "set-cookie" not in answer.headers
    assert b"no such API key" in answer.data


def test_signing_out_forgets_the_cookie(site, browser):
    """Who signs out is a stranger in this browser."""
    answer = browser.post("/sign-out", {"word": browser.word("/")})
    assert answer.status == 303
    assert 'session=""' in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_another_sites_form_does_nothing(site, browser, worker, headers):
    """A form that another site sends is refused, though it has cookie and word."""
    run = site.api().trigger()
    word = browser.word(path_of(site, run))
    fields = {"word": word, "action": "discard"}
    answer = browser.post(f"{path_of(site, run)}/act", fields, **headers)
    assert answer.status == 400
    assert b"another site" in answer.data
    assert (
        Browser(site)
        .post("/sign-in", {"key": "ci", "secret": SECRET}, **headers)
        .status
        == 403
    )
    assert site.api().state(run) in {"QUEUED", "READY"}


def test_a_form_without_its_word_does_nothing(site, browser, worker):
    """The word of another session is no word."""
    run = site.api().trigger()
    other = Browser(site)
    other.sign_in()
    for word in ("", "0" * 64, "ä"):
        answer = browser.post(
            f"{path_of(site, run)}/act", {"word": word, "action": "discard"}
        )
        assert answer.status == 400
    assert site.api().state(run) in {"QUEUED", "READY"}


def test_forms_are_bounded(site, browser):
    """Neither a huge form nor one of another kind does anything."""
    assert browser.post("/sign-out", {"word": "x" * 300_000}).status == 400
    assert browser.post("/sign-out", {str(n): "x" for n in range(30)}).status == 400


def test_every_answer_forbids_what_pages_never_do(site, browser):
    """No script, style or frame from elsewhere, and nothing is kept by proxies."""
    for path in ("/", "/sign-in", "/worker-pools", f"/stack/{site.slug}", "/nowhere/x"):
        headers = browser.get(path).headers
        if path != "/nowhere/x":
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "script-src 'self';" in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"


def test_what_is_not_there(site, browser):
    """Names that do not exist have a page that says so."""
    for path in ("/stack/none", f"/stack/{site.slug}/run/none", "/worker-pool/none"):
        answer = browser.get(path)
        assert answer.status == 404
        assert b"there is no such" in answer.data
    assert browser.get("/assets/none").status == 404


def test_stacks_runs_and_pools_are_listed(site, browser, worker):
    """Each has a row that leads to its own page."""
    run = site.api().trigger()
    assert f'href="/stack/{site.slug}"' in browser.text("/")
    assert path_of(site, run) in browser.text(f"/stack/{site.slug}")
    assert f'href="/worker-pool/{site.pool}"' in browser.text("/worker-pools")
    assert worker.id in browser.text(f"/worker-pool/{site.pool}")


def test_a_run_from_trigger_to_end(site, browser, worker):
    """The page shows plan, worker, digest, metadata and what can be done next."""
    run = site.api().trigger(metadata=f"ticket 7 {MARKUP}")
    job = worker.take()
    assert "Stop" in browser.text(path_of(site, run))
    job.handed_over()

    page = browser.text(path_of(site, run))
    assert "null_resource.a" in page
    assert worker.id in page
    assert "ticket 7" in page
    assert MARKUP not in page
    assert browser.act(run, "confirm", note="approved by Ann").status == 303

    worker.take().applied()
    page = browser.text(path_of(site, run))
    assert "approved by Ann" in page
    assert 'name="action"' not in page
    assert site.api().states(run)[-1] == "FINISHED"


def test_what_cannot_be_done_is_said(site, browser, worker):
    """An action that the state forbids changes nothing."""
    run = site.api().trigger()
    answer = browser.act(run, "confirm")
    assert answer.status == 400
    assert b"cannot be confirmed" in answer.data
    assert browser.act(run, "explode").status == 400
    assert browser.act(run, "discard").status == 303
    assert site.api().state(run) == "DISCARDED"


def test_a_worker_is_asked_to_stop(site, browser, worker):
    """Stop reaches the worker with the reason."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    assert browser.act(run, "stop", note="wrong branch").status == 303
    assert job.post("renew", {})["stop"] == "wrong branch"


def test_a_log_is_told_from_any_place(site, browser, worker):
    """Whoever comes back with the last id sees what follows it, and nothing twice."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"".join(b"line %d\n" % number for number in range(1, 2501)))
    job.enter("PLANNING")
    job.log(b"planned\n")
    job.settle("failed")

    seen = list(browser.events(run))
    assert rows(seen) == [
        *((number, f"line {number}") for number in range(1, 2501)),
        (2501, "planned"),
    ]
    assert seen[-1]["event"] == "over"
    ids = [event["id"] for event in seen if "id" in event]
    for place in ids:
        before = [event for event in seen[: _index(seen, place) + 1]]
        again = list(browser.events(run, seen=place))
        assert rows(before) + rows(again) == rows(seen)


def _index(events, place):
    return next(n for n, event in enumerate(events) if event.get("id") == place)


def test_a_growing_log_is_told_as_it_grows(site, browser, worker):
    """Rows come when they end, a row that has not ended shows as such."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"first\nEnter the na")
    events = browser.events(run)
    kinds = {"lines": [], "begun": [], "status": []}
    for event in events:
        kinds[event["event"]].append(event)
        if kinds["begun"] and kinds["status"]:
            break
    assert rows(kinds["lines"]) == [(1, "first")]
    assert kinds["begun"][-1]["data"] == ["Enter the na"]

    job.log(b"me: 7\n")
    grown = next(event for event in events if event["event"] == "lines")
    assert rows([grown]) == [(2, "Enter the name: 7")]
    job.log(b"..")
    begun = next(event for event in events if event["event"] == "begun")
    assert begun["data"] == [".."]
    job.log(b" done\n..")
    assert [next(events)["event"] for _ in range(2)] == ["lines", "begun"]
    events.close()


def test_who_comes_later_sees_the_same(site, browser, worker):
    """Whoever joins those who watch a growing log misses no row, and gets none twice."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    watching, told = [], []
    for start in range(0, 3000, 100):
        if start % 600 == 0:
            watching.append(browser.events(run))
            told.append(next(watching[-1]))
        job.log(b"".join(b"%d\n" % (start + number) for number in range(100)))
    job.settle("failed")
    expected = [(number + 1, str(number)) for number in range(3000)]
    for first, rest in zip(told, watching, strict=True):
        assert rows([first, *rest]) == expected


def test_viewers_keep_nobody_waiting(site, browser, worker, monkeypatch):
    """However slow it is to look at logs: they are written, and the rest is answered."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    going_on, looking, original = threading.Event(), [], Transcript.part

    def stalled(*given, **named):
        looking.append(given)
        going_on.wait(PATIENCE)
        return original(*given, **named)

    monkeypatch.setattr(Transcript, "part", stalled)
    paths = [f"{path_of(site, run)}/events?after=1.0.{row}" for row in range(60)]
    with ThreadPoolExecutor(len(paths)) as pool:
        watching = [pool.submit(browser.get, path) for path in paths]
        try:
            eventually(lambda: len(looking) > 1)
            job.log(b"written\n")
            assert site.api().state(run) == "INITIALIZING"
            assert site.slug in browser.text("/")
            job.settle("failed")
            assert not any(each.done() for each in watching)
        finally:
            going_on.set()
    assert all(b"event: over" in each.result().data for each in watching)


def test_a_database_that_is_away_ends_no_page(site, browser, worker, monkeypatch):
    """The stream ends without a word, and whoever comes back goes on where it was."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"before\n")
    events = browser.events(run)
    told = next(event for event in events if event["event"] == "lines")

    def away(*_, **__):
        raise StoreAway

    with monkeypatch.context() as patch:
        patch.setattr(Transcript, "parts", away)
        patch.setattr(Views, "run", away)
        job.log(b"meanwhile\n")
        assert not any(event["event"] == "refused" for event in events)
        assert browser.get(f"{path_of(site, run)}/status").status == 503
    again = browser.events(run, seen=told["id"])
    seen = rows([next(event for event in again if event["event"] == "lines")])
    again.close()
    assert seen == [(2, "meanwhile")]


def test_a_server_leaves_though_somebody_watches(tmp_path, repository):
    """Streams that wait for news end with the server, and keep it from nothing."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        browser = Browser(site)
        browser.sign_in()
        run = site.api().trigger()
        site.worker().take().enter("INITIALIZING")
        events = browser.events(run)
        first, rest = next(events), []
        reader = threading.Thread(target=lambda: rest.extend(events))
        reader.start()
    reader.join()
    assert first["event"] == "lines"
    assert not any(event["event"] in {"over", "refused"} for event in rest)


def test_hostile_output(site, browser, worker):
    """Long lines, cut characters and markup are rows of text."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    long = "é" * 10_000
    job.log(f"{MARKUP}\n\x1b[31m{long}\n\n".encode() + b"\xff\xfe\x00\n")
    job.settle("failed")

    found = rows(browser.events(run))
    texts = [re.sub("<[^>]*>", "", text) for _, text in found]
    assert "&lt;script&gt;" in found[0][1]
    assert "".join(texts[1:-2]) == long
    assert max(map(len, texts)) <= 4096
    assert texts[-2:] == ["", "\ufffd\ufffd␀"]
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    assert "<script>" not in browser.text(path_of(site, run)).replace("<script src", "")


def test_places_that_are_none(site, browser, worker):
    """What is no place in this log is refused."""
    run = site.api().trigger()
    worker.take().settle("failed")
    for place in ("x", "1.2", "9999.0.0", "1.999999.0", "1.0.0.0"):
        kinds = browser.get(f"{path_of(site, run)}/events", **{"Last-Event-ID": place})
        assert kinds.status == 400 or b"event: refused" in kinds.data
    assert browser.get(f"{path_of(site, run)}?after=x").status == 400


def test_a_log_is_read_without_a_script(site, browser, worker):
    """Every page of a log leads to the next one."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"".join(b"line %d\n" % number for number in range(1, 501)))
    job.settle("failed")
    path, seen = path_of(site, run), []
    while path:
        page = browser.text(path)
        seen += re.findall(r">line (\d+)<", page)
        found = re.search(r'<noscript>\s*<p><a href="(\?after=[\d.]+)', page)
        path = path_of(site, run) + found[1] if found else None
    assert seen == [str(number) for number in range(1, 501)]


def test_a_log_is_downloaded_as_text(site, browser, worker):
    """All of it, without sequences that a terminal would obey."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    job.log(b"\x1b]0;owned\x07\x1b[31mred\x1b[0m\n" + b"x" * 9000 + b"\nno end")
    answer = browser.get(f"{path_of(site, run)}/log.txt")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    text = answer.data.decode()
    assert "\x1b" not in text
    assert text.endswith(f"== INITIALIZING ==\nred\n{'x' * 9000}\nno end")


def test_many_watch_one_log(site, browser, worker):
    """However many watch, each sees every row once and in order."""
    run = site.api().trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    watching = [browser.events(run) for _ in range(8)]
    first = [next(each) for each in watching]
    for start in range(0, 2000, 100):
        job.log(b"".join(b"%d\n" % (start + number) for number in range(100)))
    job.settle("failed")
    for begun, rest in zip(first, watching, strict=True):
        assert [text for _, text in rows([begun, *rest])] == [
            str(n) for n in range(2000)
        ]


def test_charts_are_drawn_here(site, browser, worker):
    """How long runs took, and how many wait, as pictures that say what they show."""
    run = site.api().trigger()
    worker.take().settle("failed")
    eventually(lambda: site.api().state(run) == "FAILED")
    site.api().trigger()
    page = browser.text(f"/stack/{site.slug}")
    assert f'<a href="{path_of(site, run)}"><title>FAILED' in page
    assert "<polyline" in browser.text(f"/worker-pool/{site.pool}")


def test_a_worker_is_drained_and_undrained(site, browser, worker):
    """[capability 52] A drained worker gets no job until somebody takes it back."""
    path = f"/worker-pool/{site.pool}"

    def act(action, **given):
        fields = {"word": browser.word(path), "worker": worker.id, "action": action}
        return browser.post(f"{path}/act", {**fields, **given}).status

    assert act("drain") == 303
    assert "drained" in browser.text(path)
    run = site.api().trigger()
    assert worker.poll(0.2) is None
    assert act("undrain") == 303
    assert worker.take().run == run
    assert act("explode") == 400
    assert act("drain", worker="nobody") == 404
    assert act("drain", word="0" * 64) == 400
