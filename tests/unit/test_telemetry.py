"""The daemon's log, as a process of its own writes it."""

import json
import re
import subprocess
import sys
import textwrap

from datetime import datetime

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.telemetry import rfc3339


def logged(program, *, level="info", code=0):
    """Everything on standard error of a process that logs; each line as JSON."""
    prelude = f"""
        import logging, sys, threading
        import structlog
        from launcher import telemetry
        from launcher.errors import LauncherError
        telemetry.configure({level!r})
        log = structlog.get_logger()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (code, b"") == (result.returncode, result.stdout), result.stderr
    lines = result.stderr.decode("ascii").splitlines()
    assert len(lines) == result.stderr.count(b"\n")
    return [json.loads(line, parse_constant=lambda name: 1 / 0) for line in lines]


def test_every_line_has_the_same_four_keys():
    """An event is one object with caller, level, msg and ts, and its facts beside them."""
    [plain, facts] = logged(
        """
        log.info("noun.happened")
        log.warning("noun.happened", number=1, listed=[1, "a"], nothing=None)
        """
    )
    assert ["caller", "level", "msg", "ts"] == sorted(plain)
    assert ("info", "noun.happened") == (plain["level"], plain["msg"])
    assert re.fullmatch(r"<string>:\d+", plain["caller"])
    assert ("warning", 1, [1, "a"], None) == (
        facts["level"],
        facts["number"],
        facts["listed"],
        facts["nothing"],
    )


def test_the_time_is_exact():
    """A time has nine digits after the point and is in UTC."""
    [line] = logged('log.info("x")')
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line["ts"])
    assert "1970-01-01T00:00:00.000000000Z" == rfc3339(0)
    assert "2021-09-02T13:17:37.785219048Z" == rfc3339(1_630_588_657_785_219_048)


@given(st.integers(0, 250_000_000_000 * 10**9))
def test_no_nanosecond_is_rounded(nanoseconds):
    """Every time can be read back exactly."""
    text = rfc3339(nanoseconds)
    whole = datetime.strptime(text[:19] + "+0000", "%Y-%m-%dT%H:%M:%S%z")
    assert nanoseconds == int(whole.timestamp()) * 10**9 + int(text[20:29])
    assert "Z" == text[29:]


HOSTILE = [
    "two\nlines",
    'quote " and \\ backslash',
    "\x1b[2J\x1b]0;title\x07",
    '\r\n{"level":"info","msg":"forged"}',
    "\ud800 lone \udcff surrogates",
    "\u2028 \u2029 \x85 \x0b \x0c \x1c separators",
    "\x00\x7f",
    "ü€🚀",
]


def test_hostile_text_stays_in_its_line():
    """Whatever a text holds, it neither ends a line nor reaches the terminal as it is."""
    lines = logged(
        f"""
        for text in {HOSTILE!r}:
            log.info(text, fact=text, nested={{text: [text]}})
        """
    )
    assert HOSTILE == [line["msg"] for line in lines]
    assert HOSTILE == [line["fact"] for line in lines]
    assert [{text: [text]} for text in HOSTILE] == [line["nested"] for line in lines]


def test_facts_that_are_no_json_do_not_cost_the_line():
    """An event is logged whatever its facts are, and whoever logs goes on."""
    lines = logged(
        """
        class Odd:
            def __str__(self):
                raise RuntimeError("no")
        circle = []
        circle.append(circle)
        deep = []
        for _ in range(100_000):
            deep = [deep]
        from launcher.secret import Secret
        log.info("one", fact=Odd())
        log.info("two", fact={("a", "tuple"): 1})
        log.info("three", fact=circle)
        log.info("four", fact=float("nan"))
        log.info("five", fact=deep)
        log.info("six", fact=Secret("hunter2"), more=b"bytes", kind={1, 2})
        """
    )
    assert ["one", "two", "three", "four", "five", "six"] == [
        each["msg"] for each in lines
    ]
    assert all({"caller", "level", "msg", "ts"} <= line.keys() for line in lines)
    assert "hunter2" not in json.dumps(lines)


def test_a_sample_has_five_keys():
    """A policy sample is a line of its own kind: no fact and no context beside it."""
    [line] = logged(
        """
        with structlog.contextvars.bound_contextvars(run="01RUN", job="01JOB"):
            log.info("Sample 0/INITIALIZATION/X/allow", sample={"body": "x"}, more=1)
        """
    )
    assert {"caller", "level", "msg", "sample", "ts"} == line.keys()
    assert {"body": "x"} == line["sample"]


def test_context_stands_in_every_other_line():
    """What is bound once is a fact of each event, in threads as well."""
    lines = logged(
        """
        from launcher.threads import spawn
        with structlog.contextvars.bound_contextvars(run="01RUN"):
            log.info("here")
            spawn("other", lambda: log.info("there")).join()
        log.info("later")
        """
    )
    assert ["01RUN", "01RUN", None] == [line.get("run") for line in lines]


def test_errors_of_ours_keep_their_details():
    """The operator reads the public sentence, the details and where it came from."""
    [line, bare, foreign] = logged(
        """
        def fail(error):
            try:
                raise error
            except Exception:
                log.exception("noun.failed")
        fail(LauncherError("public", details="for the\\noperator"))
        log.warning("noun.failed", exc_info=LauncherError("bare"))
        fail(ValueError("not ours"))
        """
    )
    assert ("public", "for the\noperator") == (line["error"], line["details"])
    assert "in fail" in line["exception"]
    assert "error" == line["level"]
    assert ("bare", None) == (bare["error"], bare.get("details"))
    assert "details" not in foreign
    assert "ValueError: not ours" in foreign["exception"]


def test_lower_levels_are_left_out():
    """What is below the level does not appear."""
    lines = logged('log.info("no")\nlog.warning("yes")', level="warning")
    assert ["yes"] == [line["msg"] for line in lines]


def test_lines_of_many_threads_do_not_mix():
    """However many threads log, each line is whole."""
    lines = logged(
        """
        def work(name):
            for number in range(100):
                log.info("x" * 3000, name=name, number=number)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """
    )
    assert {(name, number) for name in range(8) for number in range(100)} == {
        (line["name"], line["number"]) for line in lines
    }
    assert 800 == len(lines)


def test_libraries_speak_the_same_language():
    """Warnings of libraries are lines like ours; their chatter is left out."""
    [warning, failure, odd] = logged(
        """
        library = logging.getLogger("some.library")
        library.info("chatter")
        library.warning("pool of %s is\\nfull", "x")
        try:
            1 / 0
        except ZeroDivisionError:
            library.exception("went wrong")
        library.error("badly %d formatted", "x")
        """
    )
    assert ("warning", "pool of x is\nfull") == (warning["level"], warning["said"])
    assert "ZeroDivisionError" in failure["exception"]
    assert "badly %d formatted" == odd["said"]
    assert re.fullmatch(r"<string>:\d+", warning["caller"])


def test_crashes_are_lines_too():
    """A thread or a process that ends by a bug says so in one line."""
    [thread, process] = logged(
        """
        def crash():
            raise ValueError("in a\\nthread")
        worker = threading.Thread(target=crash, name="slot-0")
        worker.start()
        worker.join()
        raise LauncherError("in the process", details="why")
        """,
        code=1,
    )
    assert ("critical", "slot-0") == (thread["level"], thread["thread"])
    assert "in a\nthread" in thread["exception"]
    assert ("in the process", "why") == (process["error"], process["details"])


@pytest.mark.parametrize(
    "end",
    ["sys.stderr.close()", "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 2)"],
)
def test_nobody_fails_because_nobody_reads(end):
    """A log that cannot be written any more ends nothing but itself."""
    program = f"""
        {end}
        for _ in range(100):
            log.info("x" * 1000)
        import os
        os._exit(7)
    """
    assert [] == logged(program, code=7)


def test_a_presigned_url_is_hidden_for_the_rest_of_the_job():
    """Whoever logs it, be it a library or a traceback: what signs it does not show."""
    [before, error, library, other, outside] = logged(
        """
        from launcher.adapters.controlplane.presigned import PresignedUrls
        from launcher.threads import spawn
        url = "https://127.0.0.1:1/w?partNumber=1&X-Amz-Signature=0123456789abcdef"
        with telemetry.veiled() as hide_with:
            hide_with(lambda text: text.replace("hunter2", "***"))
            log.info("job.claimed", secret="hunter2")
            try:
                PresignedUrls(["127.0.0.1"]).put(url, b"x")
            except LauncherError as exc:
                try:
                    raise OSError(f"no route to {url}") from exc
                except OSError:
                    log.exception("job.crashed", secret="hunter2")
            logging.getLogger("urllib3").warning("Retrying %s of hunter2", url)
            spawn("noun", lambda: log.info("noun", where=url)).join()
        log.info("noun", where="outside")
        """
    )
    assert "***" == before["secret"] == error["secret"]
    assert "https://127.0.0.1:1/w?[hidden]" in error["exception"]
    assert "Retrying https://127.0.0.1:1/w?[hidden] of ***" == library["said"]
    assert "https://127.0.0.1:1/w?[hidden]" == other["where"]
    assert "outside" == outside["where"]
    assert "0123456789abcdef" not in json.dumps([error, library, other])
