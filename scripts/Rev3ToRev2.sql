-- From revision 3 (PostgreSQL plugin 7.0 and 7.1) to revision 2 (plugin 6.0 to 6.2).
--
-- The numbers of children go; Rev2ToRev3.sql counts them anew. Nothing else is lost.
--
-- What takes time on a large index can be made beforehand, beside a working Orthanc; it is used if it is valid:
--   CREATE INDEX CONCURRENTLY childrenindex ON resources (parentid);
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev3ToRev2.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 2.


-- Refuse anything but revision 3 ----------------------------------------------------------------------------

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
        FROM (VALUES ('patientrecyclingorder.seq', true), ('resources.childcount', true),
                     ('attachedfiles.customdata', false), ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '3'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 3, found in schema %: %', index_schema,
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
LOCK TABLE resources, patientrecyclingorder, globalintegers
    IN SHARE ROW EXCLUSIVE MODE;


-- Resources: no numbers of children -------------------------------------------------------------------------

-- An invalid index is what remains of a construction that failed.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('childrenindex') AND NOT indisvalid) THEN
        DROP INDEX childrenindex;
    END IF;
END
$$;
CREATE INDEX IF NOT EXISTS childrenindex ON resources (parentid);
DROP INDEX IF EXISTS childrenindex2, dicomidentifiersindex3;

DROP TRIGGER IF EXISTS incrementchildcount ON resources;
DROP TRIGGER IF EXISTS decrementchildcount ON resources;
DROP FUNCTION IF EXISTS updatechildcount();
DROP FUNCTION IF EXISTS computemissingchildcount(bigint);
ALTER TABLE resources DROP COLUMN childcount;

-- Finds or creates an instance and its ancestors; what exists is locked until the end of the transaction.
CREATE OR REPLACE FUNCTION createinstance(
    patient_public_id text, study_public_id text, series_public_id text, instance_public_id text,
    OUT is_new_patient bigint, OUT is_new_study bigint, OUT is_new_series bigint, OUT is_new_instance bigint,
    OUT patient_internal_id bigint, OUT study_internal_id bigint, OUT series_internal_id bigint,
    OUT instance_internal_id bigint)
LANGUAGE plpgsql AS $$
DECLARE
    public_ids CONSTANT text[] := ARRAY[
        patient_public_id, study_public_id, series_public_id, instance_public_id];
    is_new bigint[];
    ids bigint[];
    id bigint;
BEGIN
    FOR level IN 1..4 LOOP
        INSERT INTO resources (resourcetype, publicid, parentid)
            VALUES (level - 1, public_ids[level], ids[level - 1])
            ON CONFLICT (publicid) DO NOTHING RETURNING internalid INTO id;
        is_new[level] := FOUND::integer;
        IF NOT FOUND THEN
            -- STRICT: should that row be gone again meanwhile, fail rather than lose the parent.
            SELECT internalid INTO STRICT id FROM resources WHERE publicid = public_ids[level] FOR UPDATE;
        END IF;
        ids[level] := id;
    END LOOP;
    IF is_new[4] = 1 THEN
        PERFORM patientaddedorupdated(ids[1], 1);
    END IF;

    is_new_patient := is_new[1];
    is_new_study := is_new[2];
    is_new_series := is_new[3];
    is_new_instance := is_new[4];
    patient_internal_id := ids[1];
    study_internal_id := ids[2];
    series_internal_id := ids[3];
    instance_internal_id := ids[4];
END
$$;


-- The recycling order: numbered by counter 7 ----------------------------------------------------------------

INSERT INTO globalintegers (key, value)
    SELECT 7, greatest((SELECT max(seq) FROM patientrecyclingorder),
                       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END
                            FROM patientrecyclingorder_seq_seq))
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;

-- Puts the patient at the end of the order. A protected one (no row) stays protected by an update.
CREATE OR REPLACE FUNCTION patientaddedorupdated(patient_id bigint, is_update bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    place bigint;
BEGIN
    UPDATE globalintegers SET value = value + 1 WHERE key = 7 RETURNING value INTO place;
    IF is_update > 0 THEN
        UPDATE patientrecyclingorder SET seq = place WHERE patientid = patient_id;
    ELSE
        INSERT INTO patientrecyclingorder (seq, patientid) VALUES (place, patient_id);
    END IF;
END
$$;


-- Statistics: not to be read without bringing them up to date -----------------------------------------------

DROP FUNCTION IF EXISTS computestatisticsreadonly(integer);
DELETE FROM globalproperties WHERE property = 14;


-- What older scripts may have left behind -------------------------------------------------------------------

DROP TABLE IF EXISTS invalidchildcounts;
DROP FUNCTION IF EXISTS updateinvalidchildcounts();
DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);
DROP FUNCTION IF EXISTS countresourcestrackerfunc();


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '2' WHERE property = 4;
