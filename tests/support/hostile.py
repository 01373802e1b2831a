"""A schema full of objects that a call of ours could mean instead of PostgreSQL's own, made by a role without rights.

Every name of a function that our SQL uses gets twins for the types of its arguments that fit no function of pg_catalog
exactly; so do the operators. Whatever runs is counted by the server (track_functions), even in a transaction that is
read-only or rolled back.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

import pgorthanc_cli

ROLE = "eve"
TYPES = ("oid", "bigint", "integer", "text", "varchar", "name", "regclass", '"char"', "anyelement", "text[]")
PAIRS = (
    ("varchar", "varchar"), ("varchar", "text"), ("text", "varchar"), ("oid", "bigint"), ("bigint", "oid"),
    ("oid", "integer"), ("integer", "oid"), ("name", "varchar"), ("varchar", "name"), ("regclass", "oid"),
    ("oid", "regclass"), ("regnamespace", "oid"), ("oid", "regnamespace"), ("bigint", "text"), ("text", "bigint"),
    ("integer", "text"), ("text", "integer"), ('"char"', "text"), ("text", '"char"'), ("smallint", "oid"),
    ("varchar", "integer"), ("numeric", "bigint"), ("bigint", "numeric"), ("varchar", "bigint"),
)  # fmt: skip
OPERATORS = ("=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "||", "~", "~*", "!~", "!~*", "~~")
DOMAINS = ("text", "oid", "int8", "int4", "name", "bool", "regclass", "timestamptz", "varchar", "json")
VIEWS = ("pg_class", "pg_proc", "pg_locks", "pg_stat_activity", "pg_settings", "pg_namespace", "pg_database")

_FUNCTION = """CREATE FUNCTION {name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS
    'BEGIN RAISE WARNING ''planted code runs''; RETURN NULL; END'"""
_AGGREGATE = "CREATE AGGREGATE {name}({arguments}) (SFUNC = planted_state, STYPE = bigint)"
# The results of pg_catalog's functions of these names, so that a call of ours would be understood with a twin, too.
_KNOWN = """
    SELECT proname, pronargs, prokind, min(CASE WHEN format_type(prorettype, NULL) LIKE 'any%%'
               OR proretset THEN 'text' ELSE format_type(prorettype, NULL) END)
        FROM pg_catalog.pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s) AND prokind IN ('f', 'a')
            AND pronargs BETWEEN 1 AND 3 AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype)
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
_CALLS = (
    "SELECT coalesce(sum(calls), 0)::integer FROM pg_catalog.pg_stat_user_functions WHERE schemaname = %s"
)


def names() -> list[str]:
    """Everything that looks like the name of a function in our SQL."""
    package = Path(pgorthanc_cli.__file__).parent
    texts = [
        node.value
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    scripts = (*package.rglob("*.sql"), *(package.parent / "scripts").glob("*.sql"))
    texts += [path.read_text("utf-8") for path in scripts]
    return sorted({name.lower() for text in texts for name in re.findall(r"\b([A-Za-z_]\w*)\s*\(", text)})


@contextmanager
def as_eve(dsn: str, schema: str) -> Iterator[Connection]:
    """The attacker's session: she may create objects in the schema, and nothing else."""
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            cur.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO eve").format(sql.Identifier(schema)))
            cur.execute("SET client_min_messages = error")
            cur.execute(sql.SQL("SET search_path TO {}; SET ROLE eve").format(sql.Identifier(schema)))
        yield conn


def plant(dsn: str, schema: str) -> int:
    """Fill the schema; how many objects there are."""
    with as_eve(dsn, schema) as conn, conn.cursor() as cur:
        cur.execute(_KNOWN, (names(),))
        known = cur.fetchall()
        assert {"pg_relation_size", "pg_table_size", "count", "format", "concat_ws"} <= {
            row[0] for row in known
        }
        statements = [
            "CREATE FUNCTION planted_state(bigint, anyelement) RETURNS bigint LANGUAGE plpgsql AS"
            " 'BEGIN RAISE WARNING ''planted code runs''; RETURN 0; END'",
            *_functions(known),
            *_operators(),
            *(
                f"CREATE DOMAIN {name} AS pg_catalog.{name} CHECK (planted_check(VALUE IS NULL))"
                for name in DOMAINS
            ),
            *(f"CREATE VIEW {name} AS SELECT planted_check(true) AS oid" for name in VIEWS),
        ]
        cur.execute(";\n".join(statements))
    return len(statements)


def _functions(known: list[tuple[str, int, str, str]]) -> Iterator[str]:
    yield _FUNCTION.format(name="planted_check", arguments="boolean", result="boolean")
    for name, number, kind, result in known:
        for one in TYPES:
            arguments = ", ".join([one] * number)
            if kind == "a" and number == 1:
                yield _try(_AGGREGATE.format(name=f'"{name}"', arguments=arguments))
            else:
                yield _try(_FUNCTION.format(name=f'"{name}"', arguments=arguments, result=result))


def _operators() -> Iterator[str]:
    for number, (left, right) in enumerate(PAIRS):
        for result, shown in (("boolean", OPERATORS[:6] + OPERATORS[12:]), ("text", OPERATORS[6:12])):
            function = f"planted_{number}_{result}"
            yield _FUNCTION.format(name=function, arguments=f"{left}, {right}", result=result)
            for name in shown:
                yield _try(
                    f"CREATE OPERATOR {name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function})"
                )


def _try(statement: str) -> str:
    """What the server does not take (a polymorphic result, two twins of one type) is left out."""
    quoted = statement.replace("$$", "$ $")
    return f"DO $$ BEGIN {quoted}; EXCEPTION WHEN OTHERS THEN NULL; END $$"


def calls(dsn: str, schema: str) -> int:
    """How often planted functions have run."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cur:
        cur.execute("SET search_path TO pg_catalog")
        cur.execute(_CALLS, (schema,))
        ((number,),) = cur.fetchall()
        return int(number)
