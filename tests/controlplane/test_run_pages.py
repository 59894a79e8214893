"""What a run's page shows of policies, reviews and outputs, and what its forms do."""

import html
import re

import pytest

from controlplane.pages import path_of
from controlplane.site import APPROVE, DENY, WARN, eventually, policy


MARKUP = "<img src=x onerror=alert(1)>\u202e\x1b[31m"
SHOWN = "&lt;img src=x onerror=alert(1)&gt;&lt;U+202E&gt;"


def text_of(page):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))


def test_what_plan_policies_have_said(judged, api, browser):
    """Why a plan was denied, and a page with what was asked and answered."""
    site = judged(DENY)
    said = MARKUP.partition("\x1b")[0]  # the rest fits no header
    run = api.trigger(metadata=f"ticket {said}")
    held = site.worker().take()
    held.planned()
    held.settle("finished")
    page = browser.text(path_of(site, run))
    assert "no-nulls: null_resource.a is not wanted" in page
    link = re.search(rf'href="({path_of(site, run)}/sample/\w+)">no-nulls<', page)[1]
    sample = browser.text(link)
    assert "deny" in sample
    assert "created_resources[_]" in sample
    assert "&#34;address&#34;: &#34;null_resource.a&#34;" in sample
    assert "ticket &lt;img" in sample
    assert said not in sample
    for wrong in (f"{link}x", link.replace(run, "0" * 26)):
        answer = browser.get(wrong)
        assert answer.status == 404
        assert b"there is no such" in answer.data


def test_warnings_and_flags(judged, api, browser):
    """What a policy warns of is beside the buttons, sampled or not."""
    site = judged(WARN)
    run = api.trigger()
    held = site.worker().take()
    held.planned()
    held.store()
    held.settle("handed_over")
    said = text_of(browser.text(path_of(site, run)))
    assert "Warned careful: look at it Flags seen" in said


def test_what_policies_say_is_text(judged, api, browser):
    """Sentences, flags and samples may be hostile; on the page they are text."""
    said = '"<img src=x onerror=alert(1)>\\u202e\\u001b[31m"'
    hostile = policy(
        "hostile",
        f"warn[{said}] {{ true }}\nflag[{said}] {{ true }}\nsample {{ true }}",
    )
    site = judged(hostile)
    run = api.trigger()
    held = site.worker().take()
    held.planned()
    page = browser.text(path_of(site, run))
    assert page.count(SHOWN) == 2
    sample = browser.text(re.search(r'href="([^"]+/sample/\w+)"', page)[1])
    for each in (page, sample):
        assert "<img" not in each
        assert "\u202e" not in each
        assert "\x1b" not in each


def test_a_run_is_approved_on_its_page(judged, api, browser):
    """Whoever reviews says yes with a note, and all see it."""
    site = judged(APPROVE)
    run = api.trigger()
    eventually(lambda: site.plane.runs._seen(api.slug, run).needs_approval)
    page = browser.text(path_of(site, run))
    assert "has not approved this run yet" in page
    assert browser.act(run, "approve", note=f"looks good {MARKUP}").status == 303
    eventually(lambda: api.state(run) == "READY")
    page = browser.text(path_of(site, run))
    assert "looks good &lt;img" in page
    assert "<img" not in page
    assert "approved by api::ci" in text_of(page)
    assert "has not approved" not in page
    assert 'value="approve"' not in page
    assert re.search(
        r'/sample/\w+">two-eyes</a></th><td><span class="state finished">', page
    )


def test_a_run_is_rejected_on_its_page(judged, api, browser):
    """A no fails it, and the page says whose policy has heard it."""
    site = judged(APPROVE)
    run = api.trigger()
    eventually(lambda: site.plane.runs._seen(api.slug, run).needs_approval)
    assert browser.act(run, "reject", note="not on a Friday").status == 303
    eventually(lambda: api.state(run) == "FAILED")
    said = text_of(browser.text(path_of(site, run)))
    assert "rejected by api::ci" in said
    assert "not on a Friday" in said
    assert "rejected by the approval policy two-eyes" in said


def test_no_review_where_nobody_asks_for_one(site, api, browser, worker):
    """A stack without an approval policy has no such form."""
    run = api.trigger()
    worker.take().handed_over()
    assert "Reviews" not in browser.text(path_of(site, run))


def test_a_part_is_planned_again(site, api, browser, worker):
    """What was ticked and what was written is planned, each once, and shown."""
    run = api.trigger()
    worker.take().handed_over()
    path = path_of(site, run)
    page = browser.text(path)
    assert 'name="target" value="null_resource.a"' in page
    answer = browser.post(
        f"{path}/act",
        [
            ("word", browser.word(path)),
            ("action", "replan"),
            ("target", "null_resource.a"),
            ("target", 'module.m["b"]'),
            ("targets", "aws_x.y[0]\r\n\r\n  null_resource.a \r\n"),
        ],
    )
    assert answer.status == 303
    assert worker.take().job["run"]["targets"] == [
        "null_resource.a",
        'module.m["b"]',
        "aws_x.y[0]",
    ]
    said = text_of(browser.text(path))
    assert "Planned only null_resource.a module.m[&#34;b&#34;] aws_x.y[0]" in said
    assert 'name="target"' not in browser.text(path)


def test_a_hostile_address_is_text(site, api, browser, worker):
    """What a plan calls a resource leaves no attribute, and the page says no to it."""
    address = f'a.b["">{MARKUP}"]'
    run = api.trigger()
    held = worker.take()
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    change = {"action": "added", "address": address, "type": MARKUP}
    held.post("plan", {"has_changes": True, "changes": [change], "applies_here": True})
    held.store()
    held.settle("handed_over")
    page = browser.text(path_of(site, run))
    assert "<img" not in page
    (value,) = re.findall(r'name="target" value="([^"]*)"', page)
    assert html.unescape(value) == address
    answer = browser.act(run, "replan", target=address)
    assert answer.status == 400
    assert b"is not the address" in answer.data
    assert b"<img" not in answer.data
    assert b"\x1b" not in answer.data


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], b"1 to 1000 targets"),
        ([("targets", "a\x00b")], b"is not the address"),
        ([("target", "x")] * 1001, b"1 to 1000 targets"),
        ([("target", "x")] * 2000, b"not a form"),
    ],
)
def test_what_cannot_be_planned_again(site, api, browser, worker, fields, sentence):
    """No address, too many, or what is none: a sentence, and the run waits on."""
    run = api.trigger()
    worker.take().handed_over()
    path = path_of(site, run)
    given = [("word", browser.word(path)), ("action", "replan"), *fields]
    answer = browser.post(f"{path}/act", given)
    assert answer.status == 400
    assert sentence in answer.data
    assert api.state(run) == "UNCONFIRMED"


def test_which_worker_and_which_image(site, api, browser, worker):
    """For each hand-over: who has held it, and the digest of what has run."""
    run = api.trigger()
    held = worker.take()
    digest = "sha256:" + "ab" * 32
    report = {"state": "INITIALIZING", "log_offset": 0, "image_digest": f"{digest}<i>"}
    held.post("state", report)
    said = browser.text(path_of(site, run))
    assert f"Worker of the plan</dt><dd><code>{worker.id}</code>" in said
    assert f"image <code>{digest}&lt;i&gt;</code>" in said


def test_outputs_of_a_stack(site, api, browser, worker):
    """Values of an apply are shown with who has changed them; sensitive ones never."""
    outputs = [
        {"name": "url", "value": f'"{MARKUP[:28]}"', "sensitive": False},
        {"name": "password", "value": '"hunter2"', "sensitive": True},
        {"name": "huge", "value": '"' + "x" * 100_000 + '"', "sensitive": False},
    ]

    def deploy():
        run = api.trigger()
        worker.take().handed_over()
        api.change("confirm", run)
        held = worker.take()
        held.enter("APPLYING")
        held.post("outputs", {"outputs": outputs})
        held.settle("finished")
        return run

    first = deploy()
    page = browser.text(path_of(site, first))
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page
    assert "hunter2" not in page
    assert "sensitive" in page
    assert page.count("this run") == 3
    assert len(page) < 30_000

    outputs[0]["value"] = '"new"'
    second = deploy()
    page = browser.text(path_of(site, second))
    assert page.count("this run") == 1
    assert page.count(f'href="{path_of(site, first)}">') == 2
    stack = browser.text(f"/stack/{site.slug}")
    assert "<details>\n<summary>Outputs (3)" in stack
    assert "hunter2" not in stack
    planned = api.trigger()
    assert "Outputs" not in browser.text(path_of(site, planned))
