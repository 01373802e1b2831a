"""Messages that the plugin writes itself. The first one that matches counts."""

from __future__ import annotations

from pgorthanc_cli.orthanc_log.model import Message

FROM_PLUGIN = (
    # Locks
    Message(
        "The PostgreSQL database is locked by another instance of Orthanc",
        "Another session holds lock 42 (index) or 43 (storage area) of this database, "
        "so this Orthanc did not start.",
        "Find out which Orthanc holds it, and stop one of the two.",
        "pgorthanc check-lock",
    ),
    Message(
        "Cannot acquire a transient advisory lock",
        "Another Orthanc, or pgorthanc, was creating or upgrading the tables (lock 44), "
        "so this Orthanc did not start.",
        "Wait until it has finished, then start this Orthanc.",
        "pgorthanc wait --unlocked --timeout 3600",
    ),
    Message(
        "READ-ONLY SYSTEM: Unable to lock the database when working in ReadOnly mode.",
        'Orthanc is configured with "ReadOnly", which requires "Lock": false.',
        'Set "Lock" to false in the section "PostgreSQL".',
        "pgorthanc config check",
    ),
    # Configuration
    Message(
        'The PostgreSQL index is currently disabled, set "EnableIndex" to "true"',
        "Orthanc uses SQLite instead of PostgreSQL, and so shows another archive, or an empty one.",
        'Set "EnableIndex" to true, in the configuration that this Orthanc reads.',
        "pgorthanc config show",
    ),
    Message(
        'The PostgreSQL storage area is currently disabled, set "EnableStorage" to "true"',
        "Orthanc stores its files in the StorageDirectory, not in PostgreSQL. This is what most "
        "installations want.",
        status="ok",
    ),
    Message(
        "No available configuration for the PostgreSQL …",
        'The plugin is loaded, but the configuration has no section "PostgreSQL", so Orthanc does '
        "not use PostgreSQL.",
        'Add the section "PostgreSQL" to the configuration that this Orthanc reads.',
        "pgorthanc config check",
    ),
    Message(
        "There must be a non-zero number of connections to the database",
        '"IndexConnectionsCount" is 0, so Orthanc did not start.',
        "Set it to 1 or more.",
        "pgorthanc config check",
    ),
    Message(
        "Invalid value for 'TransactionMode': …",
        '"TransactionMode" is neither "Serializable" nor "ReadCommitted".',
        "Correct it, or remove it.",
        "pgorthanc config check",
    ),
    Message(
        "The delay between two executions of housekeeping cannot be zero second",
        '"HousekeepingInterval" is 0, so Orthanc did not start.',
        "Set it to 1 or more.",
        "pgorthanc config check",
    ),
    Message(
        "The schema '…' does not exist.",
        'The schema that "Schema" names is missing. The plugin changes its name to lower case and '
        "does not create it.",
        "Create the schema with its tables.",
        "pgorthanc init",
    ),
    # Revisions
    Message(
        "PostgreSQL plugin is incompatible with database schema revision: …",
        "A newer plugin has upgraded this index, and this plugin (5.1 or older) cannot use it.",
        "Install the plugin for that revision, or downgrade the index; nothing is lost.",
        "pgorthanc status",
    ),
    Message(
        "PostgreSQL plugin is incompatible with … schema version: …",
        "The database does not contain an index of schema version 6, the only one that Orthanc uses.",
        "Check that this is the right database, or restore a backup.",
        "pgorthanc status",
    ),
    Message(
        "This database plugin is incompatible with your version of Orthanc …",
        "This release of the plugin and this release of Orthanc do not work together.",
        "Install releases that do.",
    ),
    Message(
        "READ-ONLY SYSTEM: the DB does not have the correct schema to run with this version of the plugin",
        "An Orthanc in ReadOnly mode upgrades nothing, and the index is at another revision.",
        "Upgrade the index on the primary server, then wait for it.",
        "pgorthanc upgrade --plan",
    ),
    Message(
        "Corrupted PostgreSQL database",
        "The tables are there, but what they must contain is missing.",
        "Compare the index with its revision.",
        "pgorthanc verify schema --deep",
    ),
    Message(
        "Corrupted database",
        "A setting that the plugin keeps in the index is damaged.",
        "Compare the index with its revision.",
        "pgorthanc verify schema --deep",
    ),
    Message(
        "No Database revision found after the upgrade !",
        "The plugin upgraded the index, which has no revision now.",
        "Compare the index with its revision.",
        "pgorthanc verify schema",
    ),
    Message(
        "Invalid database revision after the upgrade …",
        "The plugin upgraded the index, which is not at the expected revision now.",
        "Compare the index with its revision.",
        "pgorthanc verify schema",
    ),
    Message(
        "Performance warning: Your PostgreSQL server does not support trigram matching",
        "The extension pg_trgm is missing: searches with wildcards are slow, all else works.",
        "Install the extension, as the check describes.",
        "pgorthanc doctor trigram",
        "warning",
    ),
    # While Orthanc runs
    Message(
        "Database could not serialize access due to concurrent update, the transaction should be retried",
        "Two writers collided, and the plugin repeated the transaction. Single ones are normal.",
        'If there are many: set "TransactionMode" to "ReadCommitted" (plugin 7.0 or later).',
        "pgorthanc config check",
        "warning",
    ),
    Message(
        "PostgreSQL: No such large object in the database; …",
        "A file is missing from the large objects of PostgreSQL, for instance after a restore "
        "from a dump without them.",
        "Check the large objects.",
        "pgorthanc doctor large-objects",
    ),
    Message(
        "PostgreSQL: Unable to read the large object in the database",
        "A file in the large objects of PostgreSQL could not be read, often because another role owns it.",
        "Check the large objects.",
        "pgorthanc doctor large-objects",
    ),
    Message(
        "PostgreSQL: Unable to delete the large object from the database",
        "A file in the large objects of PostgreSQL could not be deleted, often because another role owns it.",
        "Check the large objects.",
        "pgorthanc doctor large-objects",
    ),
    # What follows from other messages, whatever the reason is
    Message(
        "Database is currently unavailable, retrying...",
        "The plugin could not connect and tried again.",
        "If the server is only slow to start, let Orthanc wait for it.",
        "pgorthanc wait --ready",
        "consequence",
    ),
    Message(
        "Timeout when connecting to the database, giving up",
        "The plugin could not connect and stopped trying, perhaps because of a wrong password.",
        "Connect with the same settings to see the reason.",
        "pgorthanc status",
        "consequence",
    ),
    Message(
        "The database is not available, closing the connection",
        "The plugin lost a connection, perhaps the one that held the lock.",
        "Check that Orthanc holds its lock; restart Orthanc if it does not.",
        "pgorthanc check-lock",
        "consequence",
    ),
    Message(
        "Uncaught exception, stopping now: [The database is currently not available …",
        "Orthanc stopped because it could not reach the database.",
        "Connect with the same settings to see the reason.",
        "pgorthanc status",
        "consequence",
    ),
    Message(
        "The database is currently not available (probably a transient situation)",
        "Orthanc could not use the database; it answered requests with 503.",
        "Check that Orthanc can connect.",
        "pgorthanc status",
        "consequence",
    ),
    Message(
        "Exception in database back-end: …",
        "A query of Orthanc failed.",
        "Run all checks to find the reason.",
        "pgorthanc doctor",
        "consequence",
    ),
    Message(
        "Error while initializing plugin …PostgreSQL…",
        "The plugin did not start, and so Orthanc did not.",
        "Run all checks to find the reason.",
        "pgorthanc doctor",
        "consequence",
    ),
    Message(
        "Uncaught exception, stopping now: [Error with the database engine] (code 11)",
        "Orthanc stopped because of the database.",
        "Run all checks to find the reason.",
        "pgorthanc doctor",
        "consequence",
    ),
    # Normal operation
    Message(
        "The index plugin will use … connection(s) to the database",
        "The plugin starts.",
        status="ok",
    ),
    Message("The storage area plugin will retry up to …", "The plugin starts.", status="ok"),
    Message("PostgreSQL: using … transaction mode", "The plugin starts.", status="ok"),
    Message("PostgreSQL … is finalizing", "Orthanc stops.", status="ok"),
    Message("PostgreSQL is creating the database schema", "The plugin creates the index.", status="ok"),
    Message(
        "Trying to enable trigram matching on the PostgreSQL database",
        "The plugin creates an index for searches with wildcards.",
        status="ok",
    ),
    Message(
        "The DB schema update will try to enable trigram matching on the PostgreSQL database",
        "The plugin creates an index for searches with wildcards.",
        status="ok",
    ),
    Message("Upgrading DB schema …", "The plugin upgrades the index.", status="ok"),
    Message("Current Database revision is …", "The plugin checks the revision.", status="ok"),
    Message("Database revision after the upgrade …", "The plugin has upgraded the index.", status="ok"),
    Message(
        "READ-ONLY SYSTEM: the Database plugin is working in read-only mode",
        "Orthanc is configured with ReadOnly.",
        status="ok",
    ),
    Message(
        "READ-ONLY SYSTEM: checking if the DB already exists and has the right schema",
        "Orthanc is configured with ReadOnly.",
        status="ok",
    ),
)
