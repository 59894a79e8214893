"""
An Ansible callback plugin, executed in the run container: writes what a check
would change to the file that SPACELIFT_PLAN_FILE names.
"""

from __future__ import annotations

import json
import os

from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Collects the tasks that report a change."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "spacelift_plan"

    def __init__(self) -> None:
        super().__init__()
        self._changed: list[dict[str, str]] = []

    def v2_runner_on_ok(self, result: Any) -> None:  # noqa: ANN401 (Ansible's)
        if result.is_changed():
            self._changed.append(
                {
                    "host": result._host.get_name(),  # noqa: SLF001
                    "task": result._task.get_name(),  # noqa: SLF001
                    "module": result._task.action,  # noqa: SLF001
                }
            )

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ANN401 (Ansible's)
        path = os.environ["SPACELIFT_PLAN_FILE"]
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump({"changed": self._changed}, file)
