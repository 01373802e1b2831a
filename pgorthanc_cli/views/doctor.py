"""Views of a doctor's examination: a page for people, metrics for Prometheus."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timezone

from pgorthanc_cli.constants import NAGIOS
from pgorthanc_cli.doctor import Check, Health
from pgorthanc_cli.views import html
from pgorthanc_cli.views.html import Markup, escape


def page(health: Health) -> str:
    """Return the HTML page about an examination."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    head = (
        f"<header><h1>pgorthanc doctor {_badge(health.status)}</h1>"
        f"<p><code>{escape(health.server)}</code>, {when}</p></header>"
    )
    rows = ((_badge(check.status), check.name, _advice(check)) for check in health.checks)
    checks = "".join(html.table((), rows, classes=("label", "label")))
    body = (head, f"<section>{checks}</section>")
    return "".join(html.document(f"pgorthanc doctor: {health.status}", body))


def _badge(status: str) -> Markup:
    return Markup(f'<b class="badge {status}">{status}</b>')


def _advice(check: Check) -> Markup:
    hint = f"<small>{escape(check.hint)}</small>" if check.hint else ""
    return Markup(f"{escape(check.message)}{hint}")


def prometheus(health: Health) -> str:
    """Return metrics in Prometheus' text format, version 0.0.4.

    Meant for the textfile collector of the node exporter.
    """
    samples: dict[str, list[str]] = defaultdict(list)
    target = f'target="{_label_value(health.server)}"'
    for check in health.checks:
        labels = f'{{{target},check="{check.name}"}}'
        samples["check_status"].append(f"{labels} {NAGIOS[check.status]}")
    for figure, value in health.figures.items():
        # Base units are written out: https://prometheus.io/docs/practices/naming/
        name = figure.removesuffix("_s") + "_seconds" if figure.endswith("_s") else figure
        samples[name].append(f"{{{target}}} {float(value)}")
    lines = []
    for name, values in samples.items():
        if name == "check_status":
            lines.append("# HELP pgorthanc_check_status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN")
        lines.append(f"# TYPE pgorthanc_{name} gauge")
        lines += [f"pgorthanc_{name}{value}" for value in values]
    return "\n".join(lines) + "\n"


def _label_value(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
