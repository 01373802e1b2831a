"""An examination for other programs, and for people without a terminal."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timezone
from html import escape

from pgorthanc_cli.doctor.model import Health

_LEVELS = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
_UNITS = {"_s": "_seconds"}  # base units are written out: https://prometheus.io/docs/practices/naming/

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>pgorthanc doctor: {status}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
h1 {{ font-size: 1.4em }} code {{ overflow-wrap: anywhere }}
table {{ border-collapse: collapse; width: 100% }}
td {{ border-top: 1px solid #ddd; padding: .5em .7em; vertical-align: top; overflow-wrap: anywhere }}
td:first-child, td:nth-child(2) {{ white-space: nowrap }}
small {{ color: #555; display: block }}
b {{ border-radius: .3em; padding: .1em .5em; color: #fff }}
.OK {{ background: #2e7d32 }} .WARNING {{ background: #a05a00 }}
.CRITICAL {{ background: #b71c1c }} .UNKNOWN {{ background: #616161 }}
</style></head><body>
<h1>pgorthanc doctor <b class="{status}">{status}</b></h1>
<p><code>{server}</code>, {when}</p>
<table>{rows}</table>
</body></html>
"""
_ROW = '<tr><td><b class="{status}">{status}</b></td><td>{name}</td><td>{message}{hint}</td></tr>\n'


def prometheus(health: Health) -> str:
    """The text format of Prometheus, as for the textfile collector of its node exporter (version 0.0.4)."""
    samples: dict[str, list[str]] = defaultdict(list)
    place = f'target="{_quoted(health.server)}"'
    for check in health.checks:
        samples["check_status"].append(f'{{{place},check="{check.name}"}} {_LEVELS[check.status]}')
    for figure, value in health.figures.items():
        samples[_with_unit(figure)].append(f"{{{place}}} {float(value)}")
    lines = []
    for name, values in samples.items():
        if name == "check_status":
            lines.append("# HELP pgorthanc_check_status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN")
        lines.append(f"# TYPE pgorthanc_{name} gauge")
        lines += [f"pgorthanc_{name}{value}" for value in values]
    return "\n".join(lines) + "\n"


def page(health: Health) -> str:
    """A page of its own, without scripts and without anything to load."""
    rows = "".join(
        _ROW.format(
            status=check.status,
            name=escape(check.name),
            message=escape(check.message),
            hint=f"<small>{escape(check.hint)}</small>" if check.hint else "",
        )
        for check in health.checks
    )
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return _PAGE.format(status=health.status, server=escape(health.server), when=when, rows=rows)


def _with_unit(figure: str) -> str:
    for short, long in _UNITS.items():
        if figure.endswith(short):
            return figure.removesuffix(short) + long
    return figure


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
