-- From revision 6 (PostgreSQL plugin 9.0) to revision 10 (plugin 10.0 and later).
--
-- Brings back what Rev10ToRev6.sql kept aside: the reservations of queued values.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev6ToRev10.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 10.


-- Refuse anything but revision 6 ----------------------------------------------------------------------------

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
        FROM (VALUES ('invalidchildcounts.id', true), ('attachedfiles.customdata', true),
                     ('globalintegerschanges.pk', false), ('patientrecyclingorder.seq', false),
                     ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '6'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 6, found in schema %: %', index_schema,
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
LOCK TABLE resources, attachedfiles, metadata, changes, queues, globalintegers, globalintegerschanges,
        invalidchildcounts
    IN SHARE ROW EXCLUSIVE MODE;


-- Notes of the counters and of the numbers of children: with a key ------------------------------------------

DO $$
DECLARE
    known text;
BEGIN
    SELECT string_agg(format('%s of %s', conname, conrelid::regclass), ', ') INTO known
        FROM pg_constraint
        WHERE conrelid IN ('globalintegerschanges'::regclass, 'invalidchildcounts'::regclass)
            AND contype = 'p';
    IF known IS NOT NULL THEN
        RAISE EXCEPTION 'there is a primary key already: %', known
            USING HINT = 'Drop it: revision 10 has one of its own.';
    END IF;
END
$$;

-- The new column rewrites its table. So the notes are added to the counters first: that takes less time.
-- A counter that is missing is counted; to the others the notes are added.
INSERT INTO globalintegers (key, value)
    SELECT missing.key,
           CASE missing.key
               WHEN 0 THEN (SELECT coalesce(sum(compressedsize), 0) FROM attachedfiles)
               WHEN 1 THEN (SELECT coalesce(sum(uncompressedsize), 0) FROM attachedfiles)
               WHEN 6 THEN (SELECT coalesce(max(seq), 0) FROM changes)
               ELSE (SELECT count(*) FROM resources WHERE resourcetype = missing.key - 2)
           END - (SELECT coalesce(sum(c.value), 0) FROM globalintegerschanges c WHERE c.key = missing.key)
        FROM generate_series(0, 6) AS missing (key)
        WHERE NOT EXISTS (
            SELECT FROM globalintegers known WHERE known.key = missing.key AND known.value IS NOT NULL)
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalintegers counter SET value = counter.value + note.value
    FROM (SELECT key, sum(value) AS value FROM globalintegerschanges GROUP BY key) note
    WHERE counter.key = note.key AND note.value IS NOT NULL;
TRUNCATE globalintegerschanges;

ALTER TABLE globalintegerschanges ADD COLUMN pk bigserial PRIMARY KEY;
ALTER TABLE invalidchildcounts ADD COLUMN pk bigserial PRIMARY KEY;

-- The triggers must name their columns now.
CREATE OR REPLACE FUNCTION incrementresourcestrackerfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO globalintegerschanges (key, value) VALUES (NEW.resourcetype + 2, 1);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION decrementresourcestrackerfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO globalintegerschanges (key, value) VALUES (OLD.resourcetype + 2, -1);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION attachedfileincrementsizefunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO globalintegerschanges (key, value) VALUES (0, NEW.compressedsize), (1, NEW.uncompressedsize);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION attachedfiledecrementsizefunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO globalintegerschanges (key, value) VALUES (0, -OLD.compressedsize), (1, -OLD.uncompressedsize);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION updatechildcount() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO invalidchildcounts (id) SELECT NEW.parentid WHERE NEW.parentid IS NOT NULL;
    ELSE
        -- A parent that went together with its child needs no mark.
        INSERT INTO invalidchildcounts (id)
            SELECT internalid FROM resources WHERE internalid = OLD.parentid FOR KEY SHARE;
    END IF;
    RETURN NULL;
END
$$;

-- Moves at most 10000 notes of a counter into it, so that a backlog never makes a long transaction.
-- Without the counter's row the notes stay, and the answer is NULL.
CREATE OR REPLACE FUNCTION updatesinglestatistic(statistics_key integer, OUT new_value bigint)
LANGUAGE plpgsql AS $$
BEGIN
    WITH noted AS (
        DELETE FROM globalintegerschanges WHERE pk = ANY (ARRAY(
            SELECT pk FROM globalintegerschanges
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


-- Queues: reservations --------------------------------------------------------------------------------------

ALTER TABLE queues ADD COLUMN IF NOT EXISTS reserveduntil bigint;

-- Those that Rev10ToRev6.sql kept aside; a value that was taken from its queue meanwhile stays away.
CREATE TABLE IF NOT EXISTS pgorthanc_kept_reservations (id bigint PRIMARY KEY, reserveduntil bigint NOT NULL);
UPDATE queues SET reserveduntil = kept.reserveduntil
    FROM pgorthanc_kept_reservations kept WHERE kept.id = queues.id;
DROP TABLE pgorthanc_kept_reservations;


-- The recycling order: within what the plugin can read ------------------------------------------------------

-- It reads the places (metadata 19) as 32-bit integers, of which every new instance uses one up.
DO $$
DECLARE
    places bigint;
BEGIN
    IF (SELECT last_value > 2000000000 FROM patientrecyclingordersequence) THEN
        UPDATE metadata SET value = numbered.place
            FROM (SELECT id, row_number() OVER (ORDER BY place, id) AS place
                      FROM (SELECT internalid AS id,
                                   (SELECT value::bigint FROM metadata
                                        WHERE id = internalid AND type = 19) AS place
                                FROM resources WHERE resourcetype = 0) patient
                      WHERE place IS NOT NULL) numbered
            WHERE metadata.id = numbered.id AND type = 19;
        GET DIAGNOSTICS places = ROW_COUNT;
        PERFORM setval('patientrecyclingordersequence', greatest(places, 1), places > 0);
    END IF;
END
$$;


-- What older scripts may have left behind -------------------------------------------------------------------

DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '10' WHERE property = 4;
