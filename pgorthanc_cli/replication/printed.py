"""`replication plan --print`: the same steps for an administrator who runs them by hand."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli.replication import access
from pgorthanc_cli.replication.plan import Asked, Plan

FORMS = ("steps", "compose", "systemd")


def printed(plan: Plan, asked: Asked, form: str) -> str:
    """The plan as text, in one of FORMS; passwords are places to fill in."""
    lines = {"steps": _steps, "compose": _compose, "systemd": _systemd}[form](plan, asked)
    return "\n".join(lines) + "\n"


def _source(plan: Plan) -> tuple[str, str]:
    """Host and port of the primary, as the standby may reach it."""
    host, _, port = plan.server.rpartition(":")
    return ("PRIMARY" if host == "local socket" or host.startswith("/") else host), port


def _steps(plan: Plan, asked: Asked) -> Iterator[str]:
    yield f"-- 1. On the primary {plan.server} (PostgreSQL {plan.version}), with psql, as a superuser:"
    todo = [item for item in plan.items if item.state in ("missing", "advice", "hidden") and item.statement]
    for item in todo:
        if item.statement.startswith(("ALTER", "CREATE", "SELECT")):
            advice = "   -- advice" if item.state == "advice" else ""
            yield f"{item.statement};{advice}"
    yield f'\\password "{asked.role}"   -- psql asks for it, and sends only its SCRAM verifier'
    yield ""
    yield "-- 2. As first lines of pg_hba.conf (SHOW hba_file):"
    tls = any(item.name == "ssl" and item.found == "on" for item in plan.items)
    for network in access.networks(asked.allow or ("192.0.2.1",)):
        yield access.line("replication", asked.role, network, tls=tls)
    for item in todo:
        if item.name.startswith("pg_hba.conf line"):
            yield f"-- and remove: {item.found}"
    yield ""
    needs = "restart the server" if plan.restart else "SELECT pg_reload_conf();"
    yield f"-- 3. {needs}"
    yield from _standby_steps(plan, asked)


def _standby_steps(plan: Plan, asked: Asked) -> Iterator[str]:
    host, port = _source(plan)
    login = f"host={host} port={port} user={asked.role} passfile=/var/lib/postgresql/replication.pgpass"
    yield ""
    yield "-- 4. On the machine of the standby, in a shell, as the owner of the empty data folder DIR (mode 0700):"
    yield f"#   /var/lib/postgresql/replication.pgpass (mode 0600):  *:*:*:{asked.role}:PASSWORD"
    yield (
        f"pg_basebackup -D DIR -d '{login} application_name={asked.slot}' -R -X stream -S {asked.slot} -c fast -P -w"
    )
    yield "pg_verifybackup DIR"
    yield "echo \"synchronous_standby_names = ''\" >> DIR/postgresql.auto.conf"
    yield "pg_ctl -D DIR -l DIR/log start"
    if asked.synchronous:
        yield ""
        yield "-- 5. On the primary, once it streams (TABLE pg_stat_replication); before, all commits would hang:"
        yield f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (\"{asked.slot}\")';"
        yield "SELECT pg_reload_conf();"


def _compose(plan: Plan, asked: Asked) -> Iterator[str]:
    """A standby as a service; the first start copies the primary. The file of the password is a secret of compose."""
    host, port = _source(plan)
    major = plan.version.partition(".")[0]
    login = f"host={host} port={port} user={asked.role} passfile=/tmp/pgpass application_name={asked.slot}"
    yield f"""\
# compose.yaml of the standby. Beside it replication.pgpass, mode 0600, owned by uid 999 (the postgres of the image):
#  *:*:*:{asked.role}:PASSWORD
services:
  standby:
    image: postgres:{major}
    user: postgres
    restart: unless-stopped
    stop_grace_period: 5m
    environment:
      PGDATA: /var/lib/postgresql/standby/data
    volumes:
      - standby:/var/lib/postgresql/standby
    secrets:
      - source: replication_pgpass
        target: replication.pgpass
    ports:
      - "127.0.0.1:5433:5432"
    entrypoint: ["bash", "-euc"]
    command:
      - |
        install -m 0600 /run/secrets/replication.pgpass /tmp/pgpass
        if [ ! -s "$$PGDATA/PG_VERSION" ]; then
          install -d -m 0700 "$$PGDATA"
          pg_basebackup -D "$$PGDATA" -d '{login}' -R -X stream -S {asked.slot} -c fast -P -w
          pg_verifybackup "$$PGDATA"
          echo "synchronous_standby_names = ''" >> "$$PGDATA/postgresql.auto.conf"
        fi
        exec postgres -D "$$PGDATA"
secrets:
  replication_pgpass:
    file: ./replication.pgpass
volumes:
  standby: {{}}"""


def _systemd(plan: Plan, asked: Asked) -> Iterator[str]:
    """A unit for the folder that `replication standby` has made; PostgreSQL tells systemd when it is ready."""
    major = plan.version.partition(".")[0]
    yield f"""\
# /etc/systemd/system/{asked.slot}.service; DIR is the folder of `pgorthanc replication standby --dir DIR`.
# Stop what pg_ctl has started before the first start by systemd: pg_ctl -D DIR stop
[Unit]
Description=PostgreSQL {major}, standby of {plan.server}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User=postgres
ExecStart=/usr/lib/postgresql/{major}/bin/postgres -D DIR
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
KillSignal=SIGINT
TimeoutSec=infinity
Restart=on-failure

[Install]
WantedBy=multi-user.target"""
