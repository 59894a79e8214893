"""
Why runs fail on a worker: every code, who has to act, and what may help.

The one list.  A code is stable: it is in the run's log and in what the control plane
is told, it is counted, and ``docs/failures.md`` is made from here
(``python -m launcher.failures``).
"""

from __future__ import annotations

import enum

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.errors import LauncherError


class Blame(enum.StrEnum):
    """Whose matter a failure is."""

    STACK = "stack"
    """The code, the settings, the hooks of the stack, and whoever writes them."""
    IMAGE = "image"
    """The runner image that the stack asks for, or the launcher's default one."""
    REGISTRY = "registry"
    """Where images come from, and the logins for it."""
    POLICY = "policy"
    """The initialization policy of the machine's owner."""
    HOST = "host"
    """The worker's machine, its engine and its disks, and whoever operates it."""
    CONTROL_PLANE = "control plane"
    """The control plane, and the way to it."""
    LAUNCHER = "launcher"
    """The launcher itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    code: str
    blame: Blame
    meaning: str
    """What has happened, in general; the run's own sentence says it in particular."""
    hint: str
    """What to do about it: one public sentence."""

    @property
    def line(self) -> str:
        """What is said in the run's log below the sentence that says what happened."""
        return f"Code {self.code} ({self.blame}). {self.hint}"


def of(code: str) -> Failure:
    """Return the failure of that *code*; one that nobody knows is a bug of ours."""
    return FAILURES.get(code) or FAILURES[LauncherError.code]


def _table() -> Iterator[Failure]:
    for blame, failures in _FAILURES.items():
        for code, (meaning, hint) in failures.items():
            yield Failure(code=code, blame=blame, meaning=meaning, hint=hint)


_FAILURES: dict[Blame, dict[str, tuple[str, str]]] = {
    Blame.STACK: {
        "phase_failed": (
            "A command of the phase ended with another exit code than 0.",
            "The output above says what the command complains about.",
        ),
        "before_hook_failed": (
            "A hook before the phase failed, so the phase itself did not begin.",
            "Run the hook's command by itself; the output above is its own.",
        ),
        "after_hook_failed": (
            "The phase itself went well, and a hook after it failed.",
            "Run the hook's command by itself; what the phase has changed stays.",
        ),
        "invalid_job": (
            "The stack asks for something that cannot be done.",
            "Mend the setting that the sentence above names.",
        ),
        "workflow_missing": (
            "The stack's tool is its own, and no file says how to call it.",
            "Add .spacelift/workflow.yml to the repository, or mount it.",
        ),
        "workflow_invalid": (
            "The file that says how to call the stack's tool cannot be used.",
            "Mend what the sentence above names in the workflow file.",
        ),
        "source_unavailable": (
            "The repository or the commit cannot be fetched.",
            (
                "Check that the commit still exists, and the URL and credentials"
                " of the stack's source."
            ),
        ),
        "runtime_config_changed": (
            (
                "The repository at this commit configures its runs in another way than"
                " the control plane has read."
            ),
            (
                "Trigger the run again; if that does not help, two servers do not"
                " show the same repository."
            ),
        ),
        "no_plan": (
            "The planning phase ended well, and left no plan that can be read.",
            "See to it that neither hooks nor the tool remove or change the plan.",
        ),
        "workspace_unusable": (
            "A file of the workspace, or all of it, cannot be read or stored.",
            (
                "Look for links, sockets or huge files in the workspace that the"
                " sentence above names."
            ),
        ),
        "unconfirmed": (
            (
                "The output says that all phases went well, and the container's exit"
                " code does not."
            ),
            "Look for something in the run that ends the shell or writes to its log.",
        ),
        "too_long": (
            "The job took longer than the worker allows.",
            (
                "Split the stack, or ask the worker's operator for a longer"
                " SPACELIFT_LAUNCHER_RUN_TIMEOUT."
            ),
        ),
        "too_silent": (
            "Nothing was printed for longer than the worker allows.",
            (
                "Let the command print how it goes on, or ask the worker's operator for"
                " a longer SPACELIFT_LAUNCHER_LOGS_TIMEOUT."
            ),
        ),
        "too_much_output": (
            "More was printed than the worker allows.",
            "Let the commands say less, for example without debug logs.",
        ),
        "too_many_masks": (
            "The run asked for more values to be masked than can be masked.",
            "Mask whole values once each, not each part of them.",
        ),
        "out_of_memory": (
            "The kernel ended a process because the container's memory was used up.",
            (
                "Lower the tool's parallelism, or ask the worker's operator for a"
                " larger SPACELIFT_LAUNCHER_WORKER_MEMORY."
            ),
        ),
    },
    Blame.IMAGE: {
        "image_not_allowed": (
            "The worker's owner does not allow this image.",
            (
                "Choose an image that the worker allows, or ask its operator to add it"
                " to SPACELIFT_LAUNCHER_ALLOWED_IMAGES."
            ),
        ),
        "image_not_found": (
            "The registry has no such image.",
            "Check the image's name and tag, and that it was pushed.",
        ),
        "image_wrong_platform": (
            "The image is for another operating system or processor.",
            "Build the image for the worker's platform, too.",
        ),
    },
    Blame.REGISTRY: {
        "image_unavailable": (
            "The image or the login for it cannot be had.",
            (
                "The sentence above says what is missing; `image check` on the worker"
                " names the login that is used."
            ),
        ),
        "image_access_denied": (
            "The registry does not let the worker have the image.",
            "Give the job or the worker a login that may pull the image.",
        ),
        "registry_rate_limited": (
            "The registry has had too many requests.",
            "Wait, log in to the registry, or use a mirror.",
        ),
        "registry_unreachable": (
            "The registry does not answer, or fails.",
            "Check the registry, and the way from the worker's engine to it.",
        ),
        "registry_not_trusted": (
            "The engine does not believe that the registry is who it should be.",
            "Give the engine the certificate of the registry's authority.",
        ),
        "image_pull_timeout": (
            "The image did not arrive in time.",
            (
                "Make the image smaller or the way to the registry faster, or pull it"
                " onto the worker beforehand."
            ),
        ),
    },
    Blame.POLICY: {
        "policy_denied": (
            "The worker's initialization policy says no.",
            (
                "The policy's reasons are in the sentence above; its owner is the"
                " worker's operator."
            ),
        ),
        "policy_failed": (
            (
                "The worker's initialization policy could not be evaluated, so the run"
                " is denied."
            ),
            (
                "The worker's operator finds the error in the sample line of the"
                " launcher's log."
            ),
        ),
    },
    Blame.HOST: {
        "engine_failed": (
            "The container engine failed in the middle of a job.",
            "The worker's operator finds the engine's words in the launcher's log.",
        ),
        "engine_timeout": (
            "The container engine does not answer, or has too much to do.",
            "Look at the engine and the load of the worker's machine.",
        ),
        "create_timeout": (
            "Volumes and container were not made and filled in time.",
            "Look at the disk and the load of the worker's machine.",
        ),
        "start_timeout": (
            "The container was not started in time.",
            "Look at the engine and the load of the worker's machine.",
        ),
        "stop_timeout": (
            "The container was not ended in time; it may still run.",
            "Look at the engine; what is left is removed once it answers.",
        ),
        "container_lost": (
            (
                "The container was ended by somebody else, or was gone when the"
                " launcher came back."
            ),
            (
                "Find out who ends containers on the worker; after an apply, look at"
                " the state's lock before the next run."
            ),
        ),
        "machine_restarted": (
            "The worker's machine was restarted while the phase was running.",
            "After an apply, look at the state's lock before the next run.",
        ),
        "host_vanishes": (
            "The worker's machine was about to be taken away.",
            "Trigger the run again; for long applies, use machines that stay.",
        ),
        "aborted": (
            "The worker's operator ended the launcher without waiting for its jobs.",
            "Trigger the run again once the worker is back.",
        ),
        "disk_full": (
            "The engine has no room for the image.",
            "Make room on the worker's disk.",
        ),
        "workspace_full": (
            "The disk with the workspace is full.",
            "Make room on the worker's disk, or let the run store less.",
        ),
        "journal_failed": (
            "The launcher cannot write down what it must not forget.",
            "Make room on the disk with the launcher's state directory.",
        ),
    },
    Blame.CONTROL_PLANE: {
        "control_plane_unavailable": (
            "The control plane did not answer in time.",
            "Check the way from the worker to the control plane.",
        ),
        "control_plane_refused": (
            "The control plane does not accept what the worker reports.",
            "The operators of both sides find the reason in their logs.",
        ),
        "credentials_refused": (
            "Control plane and worker do not accept each other any more.",
            (
                "Check the worker's token, certificate and clock with"
                " `spacelift-launcher check`."
            ),
        ),
        "seal_broken": (
            (
                "What the control plane handed over was not sealed for this pool, or"
                " was changed on its way."
            ),
            (
                "Make sure that all workers of the pool have the key of its newest"
                " token; if they have, look for who changes what is stored."
            ),
        ),
        "lease_lost": (
            (
                "The worker could not reach the control plane for too long before"
                " anything was changed."
            ),
            "Trigger the run again once the control plane is reachable.",
        ),
    },
    Blame.LAUNCHER: {
        "internal_error": (
            "The launcher failed; this is a bug of its own.",
            (
                "The worker's operator finds the details in the launcher's log, and in"
                " what `spacelift-launcher support-bundle` collects."
            ),
        ),
        "not_begun": (
            (
                "The launcher was restarted while it handed the phase over, and the"
                " phase never began."
            ),
            "Trigger the run again; nothing of this phase has happened.",
        ),
    },
}

FAILURES: dict[str, Failure] = {failure.code: failure for failure in _table()}

_HEAD = """\
# Failures

A run that fails on a worker has a code. The end of its log names it, below the
sentence that says what happened:

```text
image "registry.example.com/runner:9" does not exist
Code image_not_found (image). Check the image's name and tag, and that it was pushed.
```

The metric `spacelift_launcher_failures_total` counts jobs by `code` and `blame`, which
says whose matter it is. Codes are stable; new ones are added.
"""


def documentation() -> str:
    """Return ``docs/failures.md``."""
    lines = [_HEAD]
    for blame in Blame:
        lines += [f"## {blame.capitalize()}\n", "| code | what happened | what to do |"]
        lines.append("|---|---|---|")
        lines += [
            f"| `{each.code}` | {each.meaning} | {each.hint} |"
            for each in FAILURES.values()
            if each.blame is blame
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(documentation(), end="")  # noqa: T201
