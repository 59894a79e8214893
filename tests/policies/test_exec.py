import hashlib
import json
import os
import sys
import time

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from given import eventually
from launcher.adapters.policies.exec import LARGEST_OUTPUT, exec_builtin
from launcher.adapters.policies.machine import Call, Halt
from launcher.policy import Program


@pytest.fixture
def program(tmp_path):
    """
    A maker of executable scripts.
    """

    def make(script, name="program"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def call(document=b"{}", seconds=20.0):
    return Call(document=document, ends=time.monotonic() + seconds)


def execute(path, *arguments, pin="", given=None, seconds=5.0):
    builtin = exec_builtin([Program(path=path, sha256=pin)], seconds=seconds)
    return builtin(given or call(), [path, *arguments])


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_what_came_of_it(program):
    """
    Status and both streams come back, and nothing was cut.
    """
    path = program('echo "out $1"; echo err >&2; exit 3')

    assert {
        "status": 3,
        "stdout": "out a b; c\n",
        "stdout_cut": False,
        "stderr": "err\n",
        "stderr_cut": False,
    } == execute(path, "a b; c")


@pytest.mark.parametrize("pinned", [False, True])
def test_surroundings(program, pinned):
    """
    The program sees the input, PATH, an empty directory of its own, and no more.
    """
    path = program("env; pwd; ls -A; cat")
    answer = execute(
        path, pin=digest(path) if pinned else "", given=call(b'{"x": "\\u00e9"}')
    )

    *environment, folder, document = answer["stdout"].splitlines()
    assert {"PATH", "PWD"} >= {line.partition("=")[0] for line in environment} - {
        "_",
        "OLDPWD",
        "SHLVL",
    }
    assert "/spacelift-exec-" in folder
    assert not Path(folder).exists()
    assert {"x": "é"} == json.loads(document)


def test_a_binary(tmp_path):
    """
    Programs that are no scripts work, too, pinned or not.
    """
    path = str(Path("/bin/true").resolve())

    assert 0 == execute(path)["status"]
    assert 0 == execute(path, pin=digest(path))["status"]


def test_large_input(program):
    """
    An input that no pipe would hold does not block a program that ignores it.
    """
    given = call(b"x" * 4_000_000)

    assert 0 == execute(program("exit 0"), given=given)["status"]
    assert "4000000" in execute(program("wc -c", "wc"), given=given)["stdout"]


def test_not_on_the_list(program):
    """
    A path that the owner has not listed is not started.
    """
    builtin = exec_builtin([Program(path=program("exit 0"))])

    with pytest.raises(Halt, match="is not allowed"):
        builtin(call(), [program("exit 0", "other")])


def test_another_spelling(program):
    """
    A path is compared as it is written, so that there is no way around the list.
    """
    path = program("exit 0")
    builtin = exec_builtin([Program(path=path)])

    for spelling in (f"/.{path}", path.replace("/", "//"), Path(path).name, ""):
        with pytest.raises(Halt, match="is not allowed"):
            builtin(call(), [spelling])


def test_a_pin_that_does_not_match(program):
    """
    A program that is not what it was pinned to is not started.
    """
    path = program("exit 0")
    pin = digest(path)
    program("exit 1")

    with pytest.raises(Halt, match="not what it was pinned to"):
        execute(path, pin=pin)


def test_what_was_hashed_is_what_runs(program, tmp_path):
    """
    A pinned program that is exchanged while it runs goes on as it was.
    """
    ready = tmp_path / "ready"
    go_on = tmp_path / "go-on"
    os.mkfifo(ready)
    os.mkfifo(go_on)
    path = program(f"echo >{ready}; read line <{go_on}; echo original")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(execute, path, pin=digest(path))
        ready.read_text()
        Path(path).write_text("#!/bin/sh\n" + "echo exchanged\n" * 50)
        go_on.write_text("\n")

        assert "original\n" == answer.result()["stdout"]


@pytest.mark.parametrize(
    "content", [None, "directory", "not executable", "\0 no program"]
)
def test_what_cannot_be_started(tmp_path, content):
    """
    What is absent, no file, not executable or no program ends the evaluation.
    """
    path = tmp_path / "program"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
        path.chmod(0o644 if content == "not executable" else 0o755)

    with pytest.raises(Halt):
        execute(str(path))


@pytest.mark.parametrize(
    "command", [[], "x", None, [1], [["x"]], ["x", None], ["x", "a\0b"], {}, True]
)
def test_no_command(command):
    """
    What is no array of strings ends the evaluation.
    """
    with pytest.raises(Halt, match="takes an array"):
        exec_builtin([])(call(), command)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_too_much_output(program, stream):
    """
    Output beyond the limit is read, thrown away, and said to be missing.
    """
    target = "" if stream == "stdout" else ">&2"
    answer = execute(program(f"head -c 10000000 /dev/zero | tr '\\0' x {target}"))

    assert (0, True) == (answer["status"], answer[f"{stream}_cut"])
    assert "x" * LARGEST_OUTPUT == answer[stream]


def test_output_that_is_no_text(program):
    """
    Bytes that are not UTF-8 are replaced.
    """
    assert "a\ufffdb" == execute(program(r"printf 'a\377b'"))["stdout"]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_too_slow(program, tmp_path):
    """
    At the limit a program is killed with what it started, in whatever session.
    """
    pids = tmp_path / "pids"
    path = program(f"setsid sh -c 'echo $$ >{pids}; sleep 60' & sleep 60 & wait")

    began = time.monotonic()
    with pytest.raises(Halt, match="took too long"):
        execute(path, seconds=1.0)

    assert 30 > time.monotonic() - began
    eventually(lambda: not alive(int(pids.read_text())))


def test_no_longer_than_the_evaluation(program):
    """
    An evaluation that is nearly over gives its program no more than the rest.
    """
    began = time.monotonic()
    with pytest.raises(Halt, match="took too long"):
        execute(program("sleep 60"), given=call(seconds=0.3))

    assert 30 > time.monotonic() - began


def test_what_is_left_behind(program):
    """
    A program's answer does not wait for what it leaves behind, which is killed.
    """
    began = time.monotonic()
    answer = execute(program("sleep 60 & echo $!"))

    assert 30 > time.monotonic() - began
    assert 0 == answer["status"]
    assert not alive(int(answer["stdout"]))


def test_killed_by_a_signal(program):
    """
    A death by signal is a status, as in a shell.
    """
    assert 137 == execute(program("kill -9 $$"))["status"]


def test_once_per_evaluation(program, tmp_path):
    """
    The same call runs once in an evaluation, and again in the next.
    """
    count = tmp_path / "count"
    path = program(f"echo x >>{count}; cat {count}")
    builtin = exec_builtin([Program(path=path)])
    one, other = call(), call()

    answers = [
        builtin(each, [path, *arguments])["stdout"].count("x")
        for each, arguments in ((one, []), (one, []), (one, ["a"]), (other, []))
    ]

    assert [1, 1, 2, 3] == answers


def test_no_descriptors_leak(program):
    """
    However a call ends, it leaves no open file behind.
    """
    good, bad = program("exit 0"), program("sleep 9", "slow")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        execute(good, pin=digest(good))
        for path, seconds in ((bad, 0.1), ("/nowhere", 1.0)):
            with pytest.raises(Halt):
                execute(path, seconds=seconds)

    assert before == len(os.listdir("/proc/self/fd"))


def test_several_at_once(program):
    """
    Calls of several evaluations do not mix up their answers.
    """
    path = program('echo "$1"')
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: execute(path, str(n))["stdout"], range(20)))

    assert [f"{n}\n" for n in range(20)] == answers


def test_the_interpreter_itself(tmp_path):
    """
    A large program of several files, such as Python, is started by descriptor, too.
    """
    assert "3\n" == execute(sys.executable, "-c", "print(1 + 2)")["stdout"]
