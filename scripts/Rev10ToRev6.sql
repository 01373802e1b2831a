-- From revision 10 (PostgreSQL plugin 10.0 and later) to revision 6 (plugin 9.0).
--
-- Kept aside, and brought back by Rev6ToRev10.sql: the reservations of queued values.
-- Until then such values can be dequeued at once.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev10ToRev6.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 6.


-- Refuse anything but revision 10 ---------------------------------------------------------------------------

DO $$
DECLARE
    index_schema CONSTANT text := quote_ident(current_schema());
    recorded record;
    differs text;
BEGIN
    IF to_regclass(index_schema || '.globalproperties') IS NULL
            OR to_regclass(index_schema || '.resources') IS NULL THEN
        RAISE EXCEPTION 'there is no Orthanc index in schema %', coalesce(index_schema, 'NULL')
            USING HINT = 'Set search_path to the schema of the index.';
    END IF;
    -- From here on a name means an object of this schema, never one of another index in search_path. What is
    -- made belongs to the owner of the index, whoever runs this.
    PERFORM set_config('search_path', index_schema || ', pg_temp', true),
            set_config('role', pg_get_userbyid(relowner), true),
            set_config('client_min_messages', 'warning', true)
        FROM pg_class WHERE oid = to_regclass(index_schema || '.resources');

    -- Revision and layout both: either may be wrong after a script that ended half-way.
    SELECT max(value) FILTER (WHERE property = 1) AS version,
           max(value) FILTER (WHERE property = 4) AS revision
        INTO recorded FROM globalproperties;
    SELECT string_agg(attribute || CASE WHEN wanted THEN ' is missing' ELSE ' is there' END, ', ')
        INTO differs
        FROM (VALUES ('globalintegerschanges.pk', true), ('invalidchildcounts.pk', true),
                     ('queues.reserveduntil', true), ('patientrecyclingorder.seq', false),
                     ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '10'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 10, found in schema %: %', index_schema,
            concat_ws(', ', 'version ' || coalesce(recorded.version, 'none'),
                      'revision ' || coalesce(recorded.revision, 'none'), differs)
            USING HINT = 'Run: pgorthanc status';
    END IF;

    -- Orthanc holds 42 and 43 while it works, and 44 while it sets up a database.
    IF NOT pg_try_advisory_xact_lock(44) OR EXISTS (
            SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                WHERE datname = current_database() AND locktype = 'advisory' AND classid = 0
                    AND objid IN (42, 43) AND objsubid = 1 AND pid <> pg_backend_pid()) THEN
        RAISE EXCEPTION 'an Orthanc works on database %', current_database()
            USING ERRCODE = 'object_in_use', HINT = 'Stop every Orthanc that uses it, then run it again.';
    END IF;
END
$$;

-- Nobody else writes to these until the end of the transaction. (Outside of one, this is an error.)
LOCK TABLE resources, queues, globalintegers, globalintegerschanges, invalidchildcounts
    IN SHARE ROW EXCLUSIVE MODE;


-- Queues: no reservations -----------------------------------------------------------------------------------

-- Kept aside until the index comes back to revision 10. Those of an earlier downgrade are out of date.
DROP TABLE IF EXISTS pgorthanc_kept_reservations;
DO $$
BEGIN
    IF EXISTS (SELECT FROM queues WHERE reserveduntil IS NOT NULL) THEN
        CREATE TABLE pgorthanc_kept_reservations (id bigint PRIMARY KEY, reserveduntil bigint NOT NULL);
        INSERT INTO pgorthanc_kept_reservations (id, reserveduntil)
            SELECT id, reserveduntil FROM queues WHERE reserveduntil IS NOT NULL;
    END IF;
END
$$;

ALTER TABLE queues DROP COLUMN reserveduntil;


-- Notes of the counters and of the numbers of children: no key ----------------------------------------------

ALTER TABLE globalintegerschanges DROP COLUMN pk;
ALTER TABLE invalidchildcounts DROP COLUMN pk;

-- Moves at most 10000 notes of a counter into it, so that a backlog never makes a long transaction.
-- Without the counter's row the notes stay, and the answer is NULL.
CREATE OR REPLACE FUNCTION updatesinglestatistic(statistics_key integer, OUT new_value bigint)
LANGUAGE plpgsql AS $$
BEGIN
    WITH noted AS (
        DELETE FROM globalintegerschanges WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM globalintegerschanges
                WHERE key = statistics_key
                    AND EXISTS (SELECT FROM globalintegers WHERE key = statistics_key)
                LIMIT 10000))
        RETURNING value
    )
    UPDATE globalintegers SET value = value + (SELECT coalesce(sum(noted.value), 0) FROM noted)
        WHERE key = statistics_key
        RETURNING value INTO new_value;
END
$$;


-- What older scripts may have left behind -------------------------------------------------------------------

DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '6' WHERE property = 4;
