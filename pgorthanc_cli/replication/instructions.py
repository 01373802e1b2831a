"""`replication plan --print`: the same steps, to be run by hand."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli.replication.plan import PrimaryPlan, Requirements
from pgorthanc_cli.replication.survey import networks
from pgorthanc_cli.server import hba

FORMS = ("steps", "compose", "systemd")


def instructions(plan: PrimaryPlan, requirements: Requirements, form: str) -> str:
    """Return the plan as text, in one of FORMS, with placeholders for passwords."""
    lines = {"steps": _steps, "compose": _compose, "systemd": _systemd}[form](plan, requirements)
    return "\n".join(lines) + "\n"


def _steps(plan: PrimaryPlan, requirements: Requirements) -> Iterator[str]:
    yield f"-- 1. On the primary {plan.server} (PostgreSQL {plan.version}), with psql, as a superuser:"
    pending = [
        item for item in plan.items if item.state in ("missing", "advice", "hidden") and item.statement
    ]
    for item in pending:
        if item.statement.startswith(("ALTER", "CREATE", "SELECT")):
            advice = "   -- advice" if item.state == "advice" else ""
            # Without the files that it names, the server does not start again.
            if item.name == "ssl":
                advice = "   -- advice, once ssl_cert_file and ssl_key_file exist"
            yield f"{'-- ' if item.name == 'ssl' else ''}{item.statement};{advice}"
    yield f'\\password "{requirements.role}"   -- psql asks for it, and sends only its SCRAM verifier'
    yield ""
    yield "-- 2. As first lines of pg_hba.conf (SHOW hba_file):"
    tls = any(item.name == "ssl" and item.found == "on" for item in plan.items)
    for network in networks(requirements.allow or ("192.0.2.1",)):
        yield hba.password_line("replication", requirements.role, network, tls=tls)
    for item in pending:
        if item.name.startswith("pg_hba.conf line"):
            yield f"-- and remove: {item.found}"
    yield ""
    needs = "restart the server" if plan.restart else "SELECT pg_reload_conf();"
    yield f"-- 3. {needs}"
    yield from _standby_steps(plan, requirements)


def _standby_steps(plan: PrimaryPlan, requirements: Requirements) -> Iterator[str]:
    host, port = requirements.endpoint_for_standby(plan.server)
    login = (
        f"host={host} port={port} user={requirements.role} passfile=/var/lib/postgresql/replication.pgpass"
    )
    yield ""
    yield "-- 4. On the machine of the standby, in a shell, as the owner of the empty data folder DIR (mode 0700):"
    yield f"#   /var/lib/postgresql/replication.pgpass (mode 0600):  *:*:*:{requirements.role}:PASSWORD"
    yield (
        f"pg_basebackup -D DIR -d '{login} application_name={requirements.slot}' -R -X stream "
        f"-S {requirements.slot} -c fast -P -w"
    )
    yield "pg_verifybackup DIR"
    yield "echo \"synchronous_standby_names = ''\" >> DIR/postgresql.auto.conf"
    yield "pg_ctl -D DIR -l DIR/log start"
    if requirements.synchronous:
        yield ""
        yield "-- 5. On the primary, once it streams (TABLE pg_stat_replication); before, all commits would hang:"
        yield f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (\"{requirements.slot}\")';"
        yield "SELECT pg_reload_conf();"


def _compose(plan: PrimaryPlan, requirements: Requirements) -> Iterator[str]:
    """Yield a compose service, whose first start copies the primary."""
    host, port = requirements.endpoint_for_standby(plan.server)
    major = plan.version.partition(".")[0]
    role, slot = requirements.role, requirements.slot
    login = f"host={host} port={port} user={role} passfile=/tmp/pgpass application_name={slot}"
    yield f"""\
# compose.yaml of the standby. Beside it replication.pgpass, mode 0600, owned by uid 999 (the postgres of the image):
#  *:*:*:{requirements.role}:PASSWORD
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
          pg_basebackup -D "$$PGDATA" -d '{login}' -R -X stream -S {requirements.slot} -c fast -P -w
          pg_verifybackup "$$PGDATA"
          echo "synchronous_standby_names = ''" >> "$$PGDATA/postgresql.auto.conf"
        fi
        exec postgres -D "$$PGDATA"
secrets:
  replication_pgpass:
    file: ./replication.pgpass
volumes:
  standby: {{}}"""


def _systemd(plan: PrimaryPlan, requirements: Requirements) -> Iterator[str]:
    """Yield a systemd unit for the folder that `replication standby` has created."""
    major = plan.version.partition(".")[0]
    yield f"""\
# /etc/systemd/system/{requirements.slot}.service; DIR is the folder of `pgorthanc replication standby --pgdata DIR`.
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
