"""Reading logs: pages, characters, and waiting."""

import threading
import time

import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.site import Refused, eventually
from launcher.controlplane import resolvers, run_logs


@pytest.fixture
def held(api, worker):
    """A claimed planning job."""
    api.trigger()
    return worker.take()


def entry(api, run, state):
    return next(each for each in api.history(run) if each["state"] == state)


def test_the_first_look_finds_logs(api, held):
    """A log-bearing state says so from the first moment, and others do not."""
    expected = {"QUEUED": False, "READY": False, "PREPARING": True}
    shown = {each["state"]: each["hasLogs"] for each in api.history(held.run)}
    assert shown == expected
    logs = api.log_page(held.run, entry(api, held.run, "READY"))
    assert (logs["exists"], logs["finished"], logs["messages"]) == (False, True, [])


@pytest.fixture
def no_second_look(monkeypatch):
    """Whoever waits is woken, or waits for long."""
    monkeypatch.setattr(resolvers, "LOOK_AGAIN_SECONDS", 60)


@pytest.mark.usefixtures("no_second_look")
def test_a_reader_waits_for_output(api, held):
    """An active state answers late rather than empty, and as soon as it can."""
    held.log(b"one\n")
    preparing = entry(api, held.run, "PREPARING")
    page = api.log_page(held.run, preparing)
    assert page["messages"] == [{"message": "one\n"}]
    assert (page["finished"], page["hasMore"]) == (False, True)
    answers = []

    def read():
        answers.append(api.log_page(held.run, preparing, page["nextToken"]))

    reader = threading.Thread(target=read)
    reader.start()
    began = time.monotonic()
    held.log(b"two\n")
    reader.join()
    assert answers[0]["messages"] == [{"message": "two\n"}]
    assert time.monotonic() - began < 10


def test_states_share_no_output(api, held):
    """Each has what was printed while it lasted."""
    for state, text in [("INITIALIZING", b"one\n"), ("PLANNING", b"two\n")]:
        held.log(text)
        held.enter(state)
    held.log(b"three\n")
    held.settle("failed")
    texts = [
        api.read_log(held.run, state)
        for state in ("PREPARING", "INITIALIZING", "PLANNING")
    ]
    assert texts == ["one\n", "two\n", "three\n"]


@pytest.mark.usefixtures("no_second_look")
def test_a_reader_learns_at_once_that_a_state_was_left(api, held):
    """Or spacectl would stay in it for ever."""
    preparing = entry(api, held.run, "PREPARING")
    answers = []
    reader = threading.Thread(
        target=lambda: answers.append(api.log_page(held.run, preparing))
    )
    reader.start()
    held.enter("INITIALIZING")
    reader.join()
    (page,) = answers
    assert (page["finished"], page["hasMore"], page["messages"]) == (True, False, [])


def test_waiting_is_bounded(api, held, monkeypatch):
    """An empty page in time keeps the token, so that nothing is printed twice."""
    monkeypatch.setattr(resolvers, "LOG_WAIT_SECONDS", 0.2)
    held.log(b"abc")
    preparing = entry(api, held.run, "PREPARING")
    token = api.log_page(held.run, preparing)["nextToken"]
    page = api.log_page(held.run, preparing, token)
    assert page["messages"] == []
    assert page["nextToken"] == token
    assert page["hasMore"]


def test_a_long_log_comes_in_pages(api, held, monkeypatch):
    """The last page says finished, and none before it."""
    text = "".join(f"line {number}: äöü€😀\n" for number in range(40_000))
    data = text.encode()
    for start in range(0, len(data), 1 << 20):
        held.log(data[start : start + (1 << 20)])
    held.enter("INITIALIZING")
    preparing = entry(api, held.run, "PREPARING")
    pages, token = [], None
    while not pages or not pages[-1]["finished"]:
        pages.append(api.log_page(held.run, preparing, token))
        token = pages[-1]["nextToken"]
    assert len(pages) == -(-len(data) // run_logs.PAGE)
    assert all(page["hasMore"] for page in pages[:-1])
    assert "".join(page["messages"][0]["message"] for page in pages) == text


def test_a_character_is_not_cut(api, held, monkeypatch):
    """Half a character waits for its other half; at the end it is replaced."""
    monkeypatch.setattr(resolvers, "LOG_WAIT_SECONDS", 0.1)
    euro = "€".encode()
    held.log(b"a" + euro[:1])
    preparing = entry(api, held.run, "PREPARING")
    page = api.log_page(held.run, preparing)
    assert page["messages"] == [{"message": "a"}]
    token = page["nextToken"]
    assert api.log_page(held.run, preparing, token)["messages"] == []
    held.log(euro[1:])
    assert api.log_page(held.run, preparing, token)["messages"] == [{"message": "€"}]
    held.log(euro[:2])
    held.enter("INITIALIZING")
    assert api.read_log(held.run, "PREPARING") == "a€\N{REPLACEMENT CHARACTER}"


def test_hostile_bytes_are_just_data(api, held):
    """Control characters, markup, NUL: what was printed is what is shown."""
    data = bytes(range(256)) + b"\x1b[2J<script>alert(1)</script>\r\n\0"
    held.log(data)
    held.enter("INITIALIZING")
    assert api.read_log(held.run, "PREPARING") == data.decode(errors="replace")


@pytest.mark.parametrize("token", ["", "-1", "1.5", "x", "9" * 15, "9" * 40])
def test_a_token_must_be_ours(api, held, token):
    """An invented token is refused with a sentence."""
    with pytest.raises(Refused, match="token"):
        api.log_page(held.run, entry(api, held.run, "PREPARING"), token)


def test_what_never_was_has_no_log(api, held):
    """A state that the run was not in, or not then, is null."""
    assert api.log_page(held.run, {"state": "APPLYING", "stateVersion": 9}) is None
    assert api.log_page(held.run, {"state": "PREPARING", "stateVersion": 1}) is None
    assert api.log_page(held.run, {"state": "NONE", "stateVersion": 1}) is None


def test_many_readers_do_not_keep_workers_waiting(site, api, held):
    """Waiting readers hold no thread."""
    preparing = entry(api, held.run, "PREPARING")
    readers = [
        threading.Thread(target=api.log_page, args=(held.run, preparing))
        for _ in range(45)
    ]
    for reader in readers:
        reader.start()
    eventually(lambda: len(site.plane.bell._listeners.get(f"run:{held.run}", ())) == 45)
    began = time.monotonic()
    held.post("renew", b"")
    assert time.monotonic() - began < 10
    held.enter("INITIALIZING")
    for reader in readers:
        reader.join()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode))),
    st.integers(4, 9),
)
def test_decoding_in_pages_is_decoding_at_once(parts, page):
    """For any bytes and any size of page the text is the same."""
    data, text, offset = b"".join(parts), "", 0
    while True:
        piece = data[offset : offset + page]
        last = offset + len(piece) == len(data)
        shown, used = run_logs._decoded(piece, last=last)
        text += shown
        offset += used
        if last:
            break
        assert used
    assert text == data.decode(errors="replace")
