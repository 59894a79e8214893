"""The chart as Helm renders it, and the files that say what it should look like."""

import subprocess
import sys

from pathlib import Path

import yaml


ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "spacelift-launcher"
VALUES = sorted((ROOT / "tests" / "helm" / "values").glob("*.yaml"))
GOLDEN = ROOT / "tests" / "helm" / "golden"
OLDEST, NEWEST = "1.29.0", "1.37.0"
"""Of Kubernetes, as docs/install-kubernetes.md promises."""


def helm(*arguments):
    """Run it; its output, or CalledProcessError with what it said."""
    finished = subprocess.run(
        ["helm", *map(str, arguments)], capture_output=True, text=True
    )
    finished.check_returncode()
    return finished.stdout


def rendered(*values, release="release", version=OLDEST, chart=CHART, also=()):
    """The text of all objects; *also* are assignments, as after `--set-json`."""
    return helm(
        "template",
        release,
        chart,
        "--namespace=spacelift",
        f"--kube-version={version}",
        *(f"--values={each}" for each in values),
        *(part for each in also for part in ("--set-json", each)),
    )


def objects(*values, **given):
    """All objects that are rendered."""
    return [each for each in yaml.safe_load_all(rendered(*values, **given)) if each]


def refusal(*values, also):
    """What Helm says instead of rendering."""
    try:
        text = rendered(*values, also=also)
    except subprocess.CalledProcessError as exc:
        return exc.stderr
    raise AssertionError(f"rendered all the same:\n{text}")


def renew():
    """Write what is rendered now; read the difference before you commit it."""
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    for values in VALUES:
        (GOLDEN / values.name).write_text(rendered(values))


if __name__ == "__main__":
    sys.exit(renew())
