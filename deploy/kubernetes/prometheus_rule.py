"""The rules of `deploy/prometheus/rules` as the custom resource that the Prometheus operator reads.

`python -m deploy.kubernetes.prometheus_rule` writes `components/monitoring/prometheusrule.yaml`:
kustomize reads no file outside of its own folder, and two copies kept by hand would drift apart.
The groups are taken over as text, so that their comments come along.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
OUTPUT = HERE / "components" / "monitoring" / "prometheusrule.yaml"

_HEAD = """\
# Written by `make manifests` from deploy/prometheus/rules; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tocom
  labels:
    app.kubernetes.io/name: tocom
spec:
  groups:
"""


def prometheus_rule() -> str:
    """Return the resource as YAML, each run the same text.

    Raises:
        ValueError: a file of rules has something else than groups at its top.
    """
    return _HEAD + "".join(_groups(file) for file in sorted(RULES.glob("*.yml")))


def _groups(file: Path) -> str:
    """The groups of one file, two columns further in."""
    _, mark, groups = file.read_text().partition("\ngroups:\n")
    if not mark or any(line[:1] not in (" ", "") for line in groups.splitlines()):
        raise ValueError(f"{file.name}: expected comments, then `groups:` and nothing after them")
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(True))


if __name__ == "__main__":
    OUTPUT.write_text(prometheus_rule())
    print(f"wrote {OUTPUT}", file=sys.stderr)
