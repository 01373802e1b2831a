"""Messages of PostgreSQL and libpq, which the plugin logs after `PostgreSQL error:`.

The first one that matches counts. A server whose `lc_messages` is not English writes
other texts, which are reported as unknown.
"""

from __future__ import annotations

from pgorthanc_cli.orthanc_log.model import Message

_INCOMPLETE = "The index is at another revision than it claims, or an upgrade stopped half-way."
_PLAN = "See what blocks the upgrade."

FROM_SERVER = (
    # Logging in
    Message(
        'password authentication failed for user "…"',
        "The password is wrong, or the role does not exist.",
        "See how the role logs in, and correct the password in Orthanc's configuration.",
        "pgorthanc check-auth",
    ),
    Message(
        'database "…" does not exist',
        "The server has no database of this name.",
        "Correct the name in Orthanc's configuration, or create the database with an index.",
        "pgorthanc init --create-database",
    ),
    Message(
        'role "…" does not exist',
        "The server has no role (user) of this name.",
        "Create the role, or correct its name in Orthanc's configuration.",
        "pgorthanc check-auth",
    ),
    Message(
        'no pg_hba.conf entry for host "…", user "…", database "…"',
        "The server has no rule in pg_hba.conf that lets this client in; perhaps only without TLS.",
        "See which rule is missing, and whether TLS would be let in.",
        "pgorthanc check-auth",
    ),
    Message(
        "pg_hba.conf rejects connection …",
        "A rule in pg_hba.conf of the server rejects this client.",
        "See which rule it is, and whether TLS would be let in.",
        "pgorthanc check-auth",
    ),
    Message(
        "authentication method 10 not supported",
        "The server requires SCRAM, which the plugin up to 3.2 cannot do.",
        "Upgrade the plugin.",
        "pgorthanc check-auth",
    ),
    Message(
        "server does not support SSL, but SSL was required",
        '"EnableSsl" is true, but the server has TLS turned off.',
        "See which settings of TLS work, then change the server or the configuration.",
        "pgorthanc check-auth",
    ),
    Message(
        "certificate verify failed",
        "Orthanc does not trust the certificate of the server: another authority, or expired.",
        "See its issuer and expiry.",
        "pgorthanc check-auth",
    ),
    Message(
        "sorry, too many clients already",
        "The server has no free connection. Each Orthanc opens up to IndexConnectionsCount "
        "connections, 50 by default since plugin 7.0.",
        "Compare the connections of all Orthancs with max_connections of the server.",
        "pgorthanc doctor connections",
    ),
    Message(
        "remaining connection slots are reserved for …",
        "The server has no free connection. Each Orthanc opens up to IndexConnectionsCount "
        "connections, 50 by default since plugin 7.0.",
        "Compare the connections of all Orthancs with max_connections of the server.",
        "pgorthanc doctor connections",
    ),
    # Reaching the server
    Message(
        "the database system is starting up",
        "The server was starting.",
        "Let Orthanc wait for the server.",
        "pgorthanc wait --ready",
        "warning",
    ),
    Message(
        "the database system is shutting down",
        "The server was being stopped.",
        "Find out whether that was planned, and let Orthanc wait for the server.",
        "pgorthanc wait --ready",
        "warning",
    ),
    Message(
        "Connection refused",
        "No server listens at this address and port.",
        "Check that PostgreSQL runs, and Host and Port in Orthanc's configuration.",
        "pgorthanc status",
    ),
    Message(
        'could not translate host name "…" to address',
        "The name of the server is unknown. A bare @ in the password of a ConnectionUri also moves "
        "the host name.",
        "Check the connection in Orthanc's configuration.",
        "pgorthanc config check",
    ),
    Message(
        'connection to server on socket "…" failed: No such file or directory',
        "Orthanc looked for a server on this machine: Host is missing, or Username is empty.",
        "Check the connection in Orthanc's configuration.",
        "pgorthanc config check",
    ),
    Message(
        'missing "=" after "…" in connection info string',
        "A value of the connection contains a space or a quote, which the plugin does not quote.",
        "Use the ConnectionUri that pgorthanc writes.",
        "pgorthanc config uri",
    ),
    # Losing the server
    Message(
        "terminating connection due to administrator command",
        "An administrator ended the session, or the server was shutting down. The lock of Orthanc "
        "may be lost.",
        "Check that Orthanc still holds its lock; restart Orthanc if it does not.",
        "pgorthanc check-lock",
    ),
    Message(
        "terminating connection due to idle-session timeout",
        "The server ends idle sessions (idle_session_timeout), which Orthanc does not expect.",
        "Set idle_session_timeout to 0 for the role of Orthanc.",
        "pgorthanc keepalive-test",
    ),
    Message(
        "server closed the connection unexpectedly",
        "The connection was lost: the server was restarted, or a firewall or proxy dropped an idle "
        "connection. If it held the lock of Orthanc, the lock is lost until Orthanc is restarted.",
        "Measure when idle connections are dropped, on the machine of Orthanc.",
        "pgorthanc keepalive-test --up-to 15m",
    ),
    Message(
        "SSL connection has been closed unexpectedly",
        "The connection was lost: the server was restarted, or a firewall or proxy dropped an idle "
        "connection. If it held the lock of Orthanc, the lock is lost until Orthanc is restarted.",
        "Measure when idle connections are dropped, on the machine of Orthanc.",
        "pgorthanc keepalive-test --up-to 15m",
    ),
    Message(
        "no connection to the server",
        "Orthanc used a connection that was lost before.",
        "Measure when idle connections are dropped, on the machine of Orthanc.",
        "pgorthanc keepalive-test --up-to 15m",
        "consequence",
    ),
    # Privileges and extensions
    Message(
        "permission denied for schema public",
        "The role may not create tables. Since PostgreSQL 15 only the owner of the database may.",
        "Create the tables; if a privilege is missing, the command prints the statement for it.",
        "pgorthanc init",
    ),
    Message(
        'permission denied to create extension "pg_trgm"',
        "The role may not install the extension pg_trgm, which the plugin requires from 6.0 on.",
        "Create the index with pgorthanc, which works without it.",
        "pgorthanc init",
    ),
    Message(
        'operator class "gin_trgm_ops" does not exist for access method "gin"',
        "The extension pg_trgm is missing, or in a schema where the plugin does not find it.",
        "See where the extension is expected.",
        "pgorthanc doctor trigram",
    ),
    Message(
        "must be owner of large object …",
        "Another role owns files in PostgreSQL, often after a restore.",
        "Check the large objects; the result contains the statement to repair them.",
        "pgorthanc doctor large-objects",
    ),
    Message(
        "large object … does not exist",
        "A file is missing from PostgreSQL, for instance after a restore from a dump without large objects.",
        "Check the large objects.",
        "pgorthanc doctor large-objects",
    ),
    # Revisions
    Message(
        'relation "patientrecyclingorder" does not exist',
        "An old plugin runs on an index at revision 6 or newer, or an upgrade stopped half-way.",
        "Compare the index with its revision, then upgrade it.",
        "pgorthanc verify schema",
    ),
    Message(
        'column "revision" of relation "metadata" does not exist',
        "The tables are those of plugin 2.2 to 3.3, but claim revision 1.",
        "Upgrade the index; pgorthanc inspects the columns.",
        "pgorthanc upgrade --plan",
    ),
    Message(
        "INSERT has more expressions than target columns",
        "The tables are those of plugin 2.2 to 3.3, but claim revision 1. Files cannot be stored.",
        "Upgrade the index; pgorthanc inspects the columns.",
        "pgorthanc upgrade --plan",
    ),
    Message(
        'could not create unique index "uniquepublicid"',
        "The index contains resources twice, so the plugin could not upgrade it.",
        "List the duplicates.",
        "pgorthanc upgrade --plan",
    ),
    Message(
        'function name "patientaddedorupdated" is not unique', _INCOMPLETE, _PLAN, "pgorthanc upgrade --plan"
    ),
    Message(
        'column "reserveduntil" of relation "queues" already exists',
        _INCOMPLETE,
        _PLAN,
        "pgorthanc upgrade --plan",
    ),
    Message(
        'column "pk" of relation "invalidchildcounts" already exists',
        _INCOMPLETE,
        _PLAN,
        "pgorthanc upgrade --plan",
    ),
    Message('relation "keyvaluestores" already exists', _INCOMPLETE, _PLAN, "pgorthanc upgrade --plan"),
    Message(
        "cannot drop table patientrecyclingorder because other objects depend on it",
        "A view that does not belong to Orthanc blocks the upgrade.",
        _PLAN,
        "pgorthanc upgrade --plan",
    ),
    Message(
        'multiple primary keys for table "invalidchildcounts" are not allowed',
        "A key that an administrator has added blocks the upgrade.",
        _PLAN,
        "pgorthanc upgrade --plan",
    ),
    Message(
        'relation "deletedfiles" does not exist',
        "Another program deletes rows of the index, without the temporary tables of the plugin.",
        "Delete through the REST API of Orthanc only.",
    ),
    # Poolers and transactions
    Message(
        'prepared statement "…" does not exist',
        "A connection pooler in transaction mode shares sessions, which the plugin cannot work with.",
        'Set pool_mode to "session", or connect without a pooler.',
        "pgorthanc doctor pooler",
    ),
    Message(
        'relation "deletedresources" does not exist',
        "A connection pooler in transaction mode shares sessions, which the plugin cannot work with.",
        'Set pool_mode to "session", or connect without a pooler.',
        "pgorthanc doctor pooler",
    ),
    Message(
        "cannot execute … in a read-only transaction",
        "The server is a standby, or takes no changes, so Orthanc cannot store anything.",
        "Check which server Orthanc uses, and whether it takes changes.",
        "pgorthanc wait --ready",
    ),
    Message(
        "deadlock detected",
        "Two sessions waited for each other; the server ended the transaction of one.",
        "If there are many, find out which sessions use the database.",
        "pgorthanc check-lock",
        "warning",
    ),
    Message(
        "could not serialize access due to …",
        "Two writers collided, and the plugin repeated the transaction. Single ones are normal.",
        'If there are many: set "TransactionMode" to "ReadCommitted" (plugin 7.0 or later).',
        "pgorthanc config check",
        "warning",
    ),
    Message(
        'duplicate key value violates unique constraint "patientrecyclingorder_pkey"',
        "The recycling order lost its sequence in a downgrade; new patients cannot be stored.",
        "Compare the index with its revision, then upgrade it.",
        "pgorthanc verify schema --deep",
    ),
    Message(
        "No space left on device",
        "The disk of the server is full.",
        "Free disk space on the server.",
        "pgorthanc doctor disk",
    ),
)
