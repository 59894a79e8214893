import os
import shlex
import signal
import subprocess

import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from given import eventually
from launcher.errors import JobInvalid
from launcher.script import phase_script
from support.shells import sh


__all__ = ["sh"]


def _moved(text, root):
    """Paths of a container, below a folder."""
    return text.replace("/run/spacelift", str(root / "private")).replace(
        "/mnt/workspace", str(root)
    )


class Container:
    """Runs phases as the entry script does, with a folder for what is private."""

    def __init__(self, shell, root):
        self.shell = shell
        self.root = root
        self.private = root / "private"
        self.work = root / "work"
        self.private.mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)

    def command(self, commands, *, export=None, directory=None, **more):
        script = phase_script(
            "plan",
            commands,
            directory=str(directory or self.work),
            export=export or {},
            **more,
        )
        (self.private / "reached").unlink(missing_ok=True)
        for step in self.private.glob("at.*"):
            step.unlink()
        path = self.private / "script"
        text = _moved(script.text, self.root)
        path.write_bytes(text.encode())
        return [self.shell, str(path)]

    def run(self, *commands, **more):
        return subprocess.run(
            self.command(commands, **more),
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            timeout=20,
            check=False,
        )

    @property
    def reached(self):
        return (self.private / "reached").exists()

    @property
    def at(self):
        """Which command was begun last, as the phase notes it."""
        return max(
            (int(path.suffix[1:]) for path in self.private.glob("at.[0-9]*")), default=0
        )

    @property
    def kept(self):
        return self.root / ".spacelift-environment"

    def variables(self):
        """What a program is given, byte for byte, by way of a file it wrote."""
        pairs = (self.work / "env").read_bytes().decode().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@pytest.fixture
def container(sh, tmp_path):
    return Container(sh, tmp_path)


def test_commands_run_in_order_in_the_folder(container):
    """All commands of a phase run one after the other in the project's folder."""
    result = container.run("echo one", "pwd", "echo three")
    assert f"one\n{container.work}\nthree\n" == result.stdout
    assert 0 == result.returncode
    assert container.reached


def test_a_phase_without_commands_succeeds(container):
    """Nothing to do is done well."""
    assert 0 == container.run().returncode
    assert container.reached


def test_one_session(container):
    """Later commands see what earlier ones set, defined and where they went."""
    result = container.run(
        "mkdir sub && cd sub",
        "x=1; f() { echo $x in ${PWD##*/}; }",
        "f",
    )
    assert "1 in sub\n" == result.stdout


def test_the_first_failure_ends_the_phase(container):
    """A command that fails keeps the following ones from running; its code counts."""
    result = container.run("echo one", "sh -c 'exit 7'", "echo never")
    assert (7, "one\n") == (result.returncode, result.stdout)
    assert not container.reached


HARD_VALUES = [
    "",
    " ",
    "plain",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "$HOME ${HOME} $$",
    "back\\slash \\n \\",
    "two\nlines\n",
    "\nEOF\n'\n}\n",
    "tab\tcr\r\nlf",
    "!history",
    "~ * ? [a-z] {a,b}",
    "ü € 🚀 \u2028",
    "\x01\x7f\x1b[31m",
    "-n -e",
    "=a=b",
    "#no comment",
    "'" * 50,
    "x" * 60_000,
]


def test_hard_values_arrive_exactly(container):
    """No value of a variable is read by the shell, whatever is in it."""
    export = {f"V{number}": value for number, value in enumerate(HARD_VALUES)}
    result = container.run("env -0 >env", export=export)
    assert (0, "") == (result.returncode, result.stdout)
    assert export == {
        name: value for name, value in container.variables().items() if name in export
    }
    assert {"env"} == {path.name for path in container.work.iterdir()}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.text(
            st.characters(exclude_characters="\0", exclude_categories=["Cs"])
        ).filter(
            # Which become our folder.
            lambda text: "/run/spacelift" not in text and "/mnt/workspace" not in text
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_value_arrives_exactly_and_stays(container, values):
    """Any text arrives as it is, in its own phase and in the next one."""
    export = {f"V{number}": value for number, value in enumerate(values)}
    changes = [f"export {name}={shlex.quote(text)}" for name, text in export.items()]
    for commands, more in (
        ([], {"plain": export, "first": True}),
        (changes, {"first": True}),
        ([], {}),
    ):
        result = container.run(*commands, "env -0 >env", **more)
        assert (0, "") == (result.returncode, result.stdout)
        found = container.variables()
        assert export == {name: found[name] for name in export}


def test_exports_last_into_the_next_phase(container):
    """What a command exports is there in the next phase; what it only sets is not."""
    container.run("export KEPT='a\nb $x' code=7; set_only=1", export={"GIVEN": "1"})
    result = container.run(
        'printf "%s|" "$KEPT" "$code" "${set_only-unset}" "$GIVEN" "${PWD##*/}"',
        export={"GIVEN": "2"},
    )
    assert "a\nb $x|7|unset|2|work|" == result.stdout


def test_a_failed_phase_exports_nothing(container):
    """Only a phase that succeeds hands its variables on."""
    container.run("export X=1", "false")
    assert "unset\n" == container.run("echo ${X-unset}").stdout


def test_variables_of_another_phase_are_unset(container):
    """What a phase must not know is gone, also where an earlier phase exported it."""
    container.run("export BOTH=1", export={"READ_TOKEN": "r"})
    result = container.run(
        "echo ${READ_TOKEN-unset} ${WRITE_TOKEN-unset} $BOTH",
        export={"WRITE_TOKEN": "w"},
        unset=("READ_TOKEN", "NEVER_SET"),
    )
    assert "unset w 1\n" == result.stdout
    assert (
        "unset unset\n"
        == container.run(
            "echo ${READ_TOKEN-unset} ${WRITE_TOKEN-unset}", unset=("WRITE_TOKEN",)
        ).stdout
    )


@pytest.mark.parametrize("code", [0, 3])
def test_leaving_the_shell_is_not_success(container, code):
    """A command that leaves the shell keeps the phase from being complete."""
    result = container.run(f"exit {code}", "echo never")
    assert (code, "") == (result.returncode, result.stdout)
    assert not container.reached


@pytest.mark.parametrize(
    "last", ["return 0", "exec true", "kill -9 $$", "trap 'exit 0' EXIT; exit 0"]
)
def test_no_other_way_out_is_success_either(container, last):
    """However a shell ends before its time, the phase was not complete."""
    result = container.run(last, "echo never")
    assert "never" not in result.stdout
    assert not container.reached


@pytest.mark.parametrize(
    "harmless",
    [
        "",
        "   ",
        "\n\n",
        "# only a comment",
        "true # a comment at the end",
        "true;",
        "echo a \\",
        "cat <<EOF >/dev/null\ntext\nEOF",
        "if true; then\n  true\nfi",
        "{ true; }",
        "( true )",
        "true &",
        "! false",
    ],
)
def test_odd_commands_do_not_reach_the_next_one(container, harmless):
    """What is a command on its own is one in the chain, and the next one follows."""
    result = container.run(harmless, "echo next")
    assert 0 == result.returncode, result.stdout
    assert result.stdout.endswith("next\n")
    assert container.reached


@pytest.mark.parametrize(
    "broken",
    [
        "echo 'open",
        'echo "open',
        "echo `open",
        "echo $(open",
        "}",
        "{",
        ")",
        "(",
        "if true",
        "fi",
        "done",
        "&& true",
        "true &&",
        "true ||",
        "| true",
        "true; } && {",
        "true\n} || {\ntrue",
        "case x in",
        "f() {",
        ": ${x?gone}",
        "no-such-command-anywhere",
        "-x",
    ],
)
def test_a_broken_command_fails_the_phase(container, broken):
    """A command that does not parse fails, and what it is chained with does not run."""
    result = container.run("echo before", broken, "echo after", "}", "'")
    assert result.returncode not in (0, None)
    assert result.stdout.startswith("before\n")
    assert "after" not in result.stdout.splitlines()
    assert not container.reached


def test_a_missing_folder_is_said_so(container):
    """A project root that does not exist is named, and nothing runs."""
    result = container.run("echo never", directory=container.root / "it's gone")
    assert 1 == result.returncode
    assert f"The folder {container.root}/it's gone does not exist.\n" == result.stdout
    assert not container.reached


def test_a_folder_may_have_any_name(container):
    """A folder's name is never read by the shell."""
    folder = container.root / "-$(touch x) 'a' \"b\""
    folder.mkdir()
    assert f"{folder}\n" == container.run("pwd", directory=folder).stdout
    assert [] == list(folder.iterdir())


def test_the_environment_is_kept_from_others(container):
    """What is exported lies in a file that only the run's user can read."""
    container.run("umask 000", "export X=1", first=True)
    assert 0o600 == container.kept.stat().st_mode & 0o777


def test_what_was_given_is_not_in_that_file(container):
    """[capability 177] Neither computed values nor secrets lie where exports are kept."""
    export = {"TOKEN": "hunter2", "TF_VAR_spacelift_run_id": "01RUN"}
    container.run(
        "export OF_HOOK=kept TOKEN=hunter3", export=export, unset=("GONE",), first=True
    )
    text = container.kept.read_text()
    assert "OF_HOOK=" in text
    for name in ("TOKEN", "hunter", "01RUN", "GONE", "PWD", "final_run_state"):
        assert name not in text


def test_what_is_given_is_never_read_from_that_file(container):
    """Whoever writes that file changes nothing of what a phase is given."""
    container.kept.write_text(
        "export TOKEN=forged\nexport HIDDEN=forged\nexport OTHER=mine\n"
    )
    result = container.run(
        "echo $TOKEN ${HIDDEN-unset} $OTHER", export={"TOKEN": "t"}, unset=("HIDDEN",)
    )
    assert "t unset mine\n" == result.stdout


def test_the_first_phase_takes_nothing_from_that_file(container):
    """What somebody put there before the first phase is gone."""
    container.kept.write_text("echo pwned; export OTHER=mine\n")
    result = container.run("echo ${OTHER-unset}", first=True)
    assert "unset\n" == result.stdout
    assert "unset\n" == container.run("echo ${OTHER-unset}").stdout


def test_a_plain_variable_can_be_changed_for_what_follows(container):
    """[capability 177] A hook that changes a plain variable changes it for later phases."""
    plain = {"REGION": "eu"}
    assert "eu\n" == container.run("echo $REGION; export REGION=us", plain=plain).stdout
    assert "us\n" == container.run("echo $REGION", plain=plain).stdout
    unchanged = {"REGION": "us", "OTHER": "a\n'b' $c"}
    container.run(":", plain=unchanged, first=True)
    assert "REGION" not in container.kept.read_text()
    assert "OTHER" not in container.kept.read_text()


MISCHIEF = [
    "set -e; false || true",
    "set -C -f -u",
    "cd /",
    "umask 777",
    "IFS=0123456789/",
    "true() { false; }; echo() { exit 9; }; printf() { exit 9; }; unset -f nothing",
    "alias true=false eval=exit export=exit ':=exit 9'",
    "sleep 60 >/dev/null 2>&1 &",
    "trap '' EXIT",
    "PATH=/nowhere",
    "exec 3>&- 4>&-",
]


@pytest.mark.parametrize("hook", MISCHIEF)
def test_mischief_of_a_hook_derails_nothing(container, hook):
    """[capability 170] Whatever a hook sets or defines, the next one is counted."""
    result = container.run(hook, "(\\exit 0)", "(\\exit 7)", "oh", first=True)
    assert (7, 3) == (result.returncode, container.at), result.stdout
    result = container.run(hook, "\\: ${OLD=1}; \\export OLD", first=True)
    assert container.reached, result.stdout
    assert 1 == container.run("exit ${OLD-9}").returncode
    assert (1, False) == (container.at, container.reached)


@pytest.mark.parametrize(
    "hook", ["exit 0", "exit 3", "exec false", "kill -9 $$", "'", "no-such-command"]
)
def test_the_hook_that_ends_a_phase_is_known(container, hook):
    """[capability 171] Which command was the last one does not depend on how it ended."""
    container.run(":", ":", hook, ":")
    assert (3, False) == (container.at, container.reached)
    container.run(":", ":")
    assert (2, True) == (container.at, container.reached)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_tool_the_time_it_takes(container, number):
    """The shell waits for the tool it started, goes no further, and has its code."""
    tool = container.work / "tool"
    tool.write_text(
        "trap 'echo saving; while [ ! -e go ]; do sleep 0.01; done; echo saved; exit 5'"
        " HUP INT TERM\n"
        "echo ready >ready\n"
        "while :; do sleep 0.01; done\n"
    )
    command = container.command(["echo begun", "sh ./tool", "echo never"])
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            eventually((container.work / "ready").exists)
            os.killpg(process.pid, number)
            assert "begun\n" == process.stdout.readline()
            assert "saving\n" == process.stdout.readline()
            assert process.poll() is None
            (container.work / "go").touch()
            assert "saved\n" == process.stdout.read()
            assert 5 == process.wait(10)
        finally:
            process.kill()
    assert not container.reached


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "Ä", "A\n", "$(x)"])
def test_names_that_no_shell_can_hold_are_refused(name):
    """A variable with an impossible name is refused before anything runs."""
    with pytest.raises(JobInvalid, match="name of a variable"):
        phase_script("plan", [], directory="/", export={name: "x"})
    with pytest.raises(JobInvalid):
        phase_script("plan", [], directory="/", export={}, unset=[name])


def test_values_that_no_program_can_hold_are_refused_without_being_shown():
    """A NUL in a value is refused, and the error does not quote the value."""
    with pytest.raises(JobInvalid) as caught:
        phase_script("plan", [], directory="/", export={"TOKEN": "hunter2\0"})
    assert "TOKEN" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caught.value.details


def test_a_script_is_not_shown():
    """The text of a phase, secrets included, is in no representation of it."""
    script = phase_script("plan", [], directory="/", export={"TOKEN": "hunter2"})
    assert "hunter2" in script.text
    assert "hunter2" not in repr(script)
