"""What a person sees of a run, in a real browser."""

import contextlib
import http.server
import threading

from pathlib import Path

import pytest

from browser.conftest import PATIENCE
from controlplane.site import Held, eventually


pytestmark = pytest.mark.services

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
LINES = 100_000
ROWS = """() => {
  const rows = [...document.querySelectorAll('#log [id^="L"]')];
  return {
    count: rows.length,
    wrong: rows.findIndex((row, index) =>
      row.id !== `L${index + 1}` || row.textContent !== `${index + 1}line ${index + 1}`),
  };
}"""


def lines(first, last):
    return b"".join(b"line %d\n" % number for number in range(first, last + 1))


def log(job, first, last, step=5000):
    for start in range(first, last + 1, step):
        job.log(lines(start, min(start + step - 1, last)))


def test_a_run_is_watched_to_its_end(plane, open_page, screenshot):
    """A person sees the log grow over a restart, confirms with metadata, sees the apply."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger(metadata="ticket 7")
    job = worker.take()
    job.enter("INITIALIZING")
    log(job, 1, LINES // 2)
    page = open_page(plane.run_page(run))
    page.locator(f"#L{LINES // 4}").wait_for(state="attached")

    plane.restart()
    worker.http = plane.server.connections()
    job = Held(worker, worker.claim(job.job["id"]), job.offset)
    log(job, LINES // 2 + 1, LINES)
    page.locator(f"#L{LINES}").wait_for(state="attached")
    assert page.locator(f"#L{LINES}").text_content() == f"{LINES}line {LINES}"
    assert page.evaluate(ROWS) == {"count": LINES, "wrong": -1}

    job.enter("PLANNING")
    job.log(
        b"\x1b[1mPlan:\x1b[0m \x1b[32m1 to add\x1b[0m, 0 to change, 0 to destroy.\n"
    )
    job.plan()
    job.store()
    job.settle("handed_over")
    page.get_by_label("Metadata for the policy").fill("approved by Ann")
    assert page.get_by_role("cell", name="null_resource.a", exact=True).is_visible()
    screenshot(page, "run")
    page.get_by_role("button", name="Confirm").click()
    page.get_by_text("approved by Ann").wait_for()

    worker.take().applied()
    page.locator("html[data-over]").wait_for(state="attached")
    page.locator("#log").get_by_text("applying", exact=False).last.wait_for(
        state="attached"
    )
    page.locator("#status .state", has_text="FINISHED").wait_for()
    assert plane.server.api().states(run)[-1] == "FINISHED"


def test_a_proxy_without_a_server_ends_nothing(plane, open_page):
    """Answers that are no stream are tried again, until there is one."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    page = open_page()
    bad = {"events": 1, "status": 1}

    def answer(route):
        what = route.request.url.partition("?")[0].rpartition("/")[2]
        if bad[what]:
            bad[what] -= 1
            route.fulfill(status=502, body="Bad Gateway")
        else:
            route.continue_()

    page.route("**/events*", answer)
    page.route("**/status", answer)
    page.goto(plane.run_page(run))
    page.get_by_text("is interrupted, and tried again").wait_for()
    job.log(b"still here\n")
    page.locator("#L1", has_text="still here").wait_for()
    assert page.locator("#trouble").is_hidden()
    assert bad == {"events": 0, "status": 0}


@contextlib.contextmanager
def another_site(host, target):
    """A page elsewhere whose button sends a form to *target*."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(
                f'<form method="post" action="{target}/act">'
                '<input name="action" value="confirm"><button>Win</button>'.encode()
            )

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_another_site_confirms_nothing(plane, open_page, host):
    """Neither another site nor another port of this one confirms a run of a visitor."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    worker.take().handed_over()
    page = open_page(plane.run_page(run))
    with another_site(host, plane.run_page(run)) as evil:
        page.goto(evil)
        with page.expect_response(lambda answer: answer.url.endswith("/act")) as answer:
            page.get_by_role("button", name="Win").click()
        assert answer.value.status in {400, 401}
    assert api.state(run) == "UNCONFIRMED"


def test_what_a_run_prints_is_text(plane, open_page):
    """Scripts, images and frames in a log are shown, and do nothing."""
    hostile = (
        "<script>window.owned = 1</script>",
        '<img src="/x" onerror="window.owned = 1">',
        '"><iframe src="javascript:parent.owned = 1">',
        "\x1b]8;;javascript:window.owned=1\x07click\x1b]8;;\x07",
        "moc.\u202eexe.txt",
    )
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger(metadata=hostile[0])
    job = worker.take()
    job.enter("INITIALIZING")
    page = open_page(plane.run_page(run))
    job.log("".join(f"{line}\n" for line in hostile).encode())
    page.locator("#L5").wait_for()
    assert page.locator("#L1").text_content() == f"1{hostile[0]}"
    assert page.locator("#L4").text_content() == "4click"
    assert page.locator("#L5").text_content() == "5moc.<U+202E>exe.txt"
    assert page.evaluate("window.owned") is None
    assert page.locator("#log img, #log iframe, #log script").count() == 0


def test_a_long_line_stalls_nobody(plane, open_page):
    """Ten megabytes without a newline are rows, and the page still answers."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    for _ in range(20):
        job.log(b"x" * (512 * 1024))
    job.log(b"\nthe end\n")
    page = open_page(plane.run_page(run))
    page.locator("#log").get_by_text("the end").wait_for(state="attached")
    page.get_by_label("Search the log").fill("THE END")
    page.keyboard.press("Enter")
    page.locator("#found", has_text="1 of 1").wait_for()


def test_a_link_leads_to_its_line(plane, open_page):
    """A line has an address, also one that comes after the page."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    log(job, 1, 5000)
    page = open_page(f"{plane.run_page(run)}")
    page.goto(f"{plane.run_page(run)}#L4321")
    page.locator("#L4321").wait_for(state="attached")
    page.wait_for_function(
        "() => { const box = document.getElementById('L4321').getBoundingClientRect();"
        " return box.top > 0 && box.bottom < innerHeight; }"
    )


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


def reviewed(page, plane, run):
    """Approve *run* on its page."""
    page.goto(plane.run_page(run, "judged"))
    page.get_by_label("Note on the review").fill("looks good")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("looks good").last.wait_for()


def test_a_run_is_judged_planned_again_and_applied(plane, open_page, screenshot):
    """Policies, reviews, a part that is planned again, and outputs, all on one page."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger("judged", metadata="ticket 9")
    page = open_page(plane.run_page(run, "judged"))
    page.get_by_text("has not approved this run yet").wait_for()
    reviewed(page, plane, run)
    worker.take().handed_over()

    page.reload()
    page.get_by_text("careful: look at <it>").last.wait_for()
    page.get_by_label("Plan null_resource.a again").check()
    page.get_by_text("Plan a part of it again").click()
    page.get_by_role("button", name="Plan again").click()
    page.get_by_text("Planned only").wait_for()
    worker.take().handed_over()

    reviewed(page, plane, run)
    screenshot(page.locator("#status"), "judged")
    page.get_by_role("button", name="Confirm").click()
    job = worker.take()
    job.enter("APPLYING")
    outputs = [
        {"name": "url", "value": '"https://<b>example.com"', "sensitive": False},
        {"name": "password", "value": '"hunter2"', "sensitive": True},
    ]
    job.post("outputs", {"outputs": outputs})
    job.settle("finished")
    page.locator("#status .state", has_text="FINISHED").first.wait_for()
    page.get_by_role("cell", name='"https://<b>example.com"').wait_for()
    assert "hunter2" not in page.content()
    check(page, "applied")
    page.get_by_role("link", name="careful").first.click()
    page.get_by_role("heading", name="What it was asked").wait_for()
    check(page, "sample")
    page.goto(f"{plane.base}/stack/judged")
    page.get_by_text("Outputs (2)").click()
    check(page, "outputs")
    page.goto(plane.run_page(api.trigger("judged"), "judged"))
    page.get_by_role("button", name="Reject").wait_for()
    check(page, "waiting")


def check(page, name):
    """Let axe look at the page, on whatever screen it is."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    told = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
    assert told == [], name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_everybody_can_use_the_pages(plane, open_page, screenshot, scheme):
    """axe finds nothing, on a phone nothing is cut off, and keys are enough."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger(metadata="ticket 7")
    worker.take().handed_over()
    ended = api.trigger(metadata="ticket 8")
    page = open_page(color_scheme=scheme, viewport={"width": 380, "height": 700})
    slug = "/stack/testing-spacelift"
    for name, path in {
        "stacks": "/",
        "stack": slug,
        "run": f"{slug}/run/{run}",
        "queued": f"{slug}/run/{ended}",
        "pools": "/worker-pools",
        "pool": "/worker-pool/default",
        "nothing": "/stack/none",
    }.items():
        page.goto(plane.base + path)
        check(page, name)
        screenshot(page, f"{name}-{scheme}")
    page.goto(f"{plane.base}{slug}/run/{run}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(40):
        if page.evaluate("document.activeElement.textContent") == "Discard":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    eventually(lambda: api.state(run) == "DISCARDED")


def test_no_script_is_needed(plane, open_page):
    """With scripts switched off a run is read and confirmed."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    job = worker.take()
    job.enter("INITIALIZING")
    log(job, 1, 500)
    job.enter("PLANNING")
    job.plan()
    job.store()
    job.settle("handed_over")
    page = open_page(plane.run_page(run), java_script_enabled=False)
    assert page.locator("#L200").is_visible()
    page.get_by_role("link", name="Further lines").click()
    page.locator("#L400").wait_for()
    page.get_by_role("button", name="Confirm").click()
    page.get_by_text("CONFIRMED").first.wait_for()
    assert api.states(run)[-1] == "CONFIRMED"


def test_who_is_signed_out_is_told(plane, open_page):
    """A page whose session has ended says so, instead of silently standing still."""
    api, worker = plane.server.api(), plane.server.worker()
    run = api.trigger()
    worker.take().enter("INITIALIZING")
    page = open_page(plane.run_page(run))
    page.context.clear_cookies()
    plane.restart()
    page.get_by_text("you are not signed in any more").wait_for(timeout=PATIENCE)
