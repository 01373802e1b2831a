-- From revision 4 (PostgreSQL plugin 7.2) to revision 3 (plugin 7.0 and 7.1).
--
-- Nothing is lost.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev4ToRev3.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 3.


-- Refuse anything but revision 4 ----------------------------------------------------------------------------

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
        FROM (VALUES ('patientrecyclingorder.seq', true), ('invalidchildcounts.id', true),
                     ('attachedfiles.customdata', false), ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '4'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 4, found in schema %: %', index_schema,
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
LOCK TABLE resources, invalidchildcounts
    IN SHARE ROW EXCLUSIVE MODE;


-- Numbers of children: counted by the trigger itself --------------------------------------------------------

-- Here they must be right: nothing marks one as out of date any more.
UPDATE resources parent
    SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
    WHERE internalid = ANY (ARRAY(SELECT id FROM invalidchildcounts));
UPDATE resources parent
    SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
    WHERE resourcetype < 3 AND childcount IS NULL;

DROP TABLE invalidchildcounts;
DROP FUNCTION IF EXISTS updateinvalidchildcounts();

-- A number that is not known yet stays NULL: the plugin counts, and computemissingchildcount() fills it in.
CREATE OR REPLACE FUNCTION updatechildcount() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE resources SET childcount = childcount + 1 WHERE internalid = NEW.parentid;
    ELSE
        UPDATE resources SET childcount = childcount - 1 WHERE internalid = OLD.parentid;
    END IF;
    RETURN NULL;
END
$$;


-- What older scripts may have left behind -------------------------------------------------------------------

DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);
DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '3' WHERE property = 4;
