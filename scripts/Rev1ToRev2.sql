-- From revision 1 (PostgreSQL plugin 4.0 to 5.1) to revision 2 (plugin 6.0 to 6.2).
--
-- Public identifiers become unique. Duplicates are not resolved here: one is named, and nothing is changed.
--
-- What takes time on a large index can be made beforehand, beside a working Orthanc; it is used if it is valid:
--   CREATE UNIQUE INDEX CONCURRENTLY pgorthanc_uniquepublicid ON resources (publicid);
--   CREATE UNIQUE INDEX CONCURRENTLY pgorthanc_uniquepatientid ON patientrecyclingorder (patientid);
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev1ToRev2.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 2.


-- Refuse anything but revision 1 ----------------------------------------------------------------------------

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
        FROM (VALUES ('patientrecyclingorder.seq', true), ('metadata.revision', true),
                     ('globalintegers.key', true), ('globalintegerschanges.key', false))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '1'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 1, found in schema %: %', index_schema,
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
LOCK TABLE resources, attachedfiles, changes, patientrecyclingorder, globalintegers
    IN SHARE ROW EXCLUSIVE MODE;


-- Identifiers: unique from now on ---------------------------------------------------------------------------

-- An index of that name that was built beforehand (CONCURRENTLY, beside a working Orthanc) is used, if it is
-- valid.
DO $$
DECLARE
    wanted record;
    wrong bigint;
    example text;
BEGIN
    SELECT count(*) INTO wrong FROM patientrecyclingorder WHERE patientid IS NULL;
    IF wrong > 0 THEN
        RAISE EXCEPTION '% rows of patientrecyclingorder name no patient', wrong
            USING HINT = 'Run: DELETE FROM patientrecyclingorder WHERE patientid IS NULL;';
    END IF;

    FOR wanted IN
        SELECT relation, attribute, name, 'pgorthanc_' || name AS index,
               (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('pgorthanc_' || name)) AS prepared
            FROM (VALUES ('resources', 'publicid', 'uniquepublicid'),
                         ('patientrecyclingorder', 'patientid', 'uniquepatientid'))
                 AS unique_constraint (relation, attribute, name)
            WHERE NOT EXISTS (
                SELECT FROM pg_constraint WHERE conrelid = to_regclass(relation) AND conname = name)
    LOOP
        IF NOT wanted.prepared THEN
            EXECUTE format('DROP INDEX %I', wanted.index);
        END IF;
        IF wanted.prepared IS NOT TRUE THEN
            EXECUTE format('CREATE UNIQUE INDEX %I ON %I (%I)',
                           wanted.index, wanted.relation, wanted.attribute);
        END IF;
        EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I UNIQUE USING INDEX %I',
                       wanted.relation, wanted.name, wanted.index);
    END LOOP;
EXCEPTION
    WHEN unique_violation THEN
        EXECUTE format('SELECT count(*), min(value::text)
                            FROM (SELECT %I AS value FROM %I GROUP BY 1 HAVING count(*) > 1) duplicate',
                       wanted.attribute, wanted.relation) INTO wrong, example;
        RAISE EXCEPTION '% values of %.% occur more than once, such as %',
            wrong, wanted.relation, wanted.attribute, example
            USING HINT = 'Run: pgorthanc upgrade --repair-duplicates';
END
$$;


-- Counters: brought up to date from notes, so that writers do not wait for each other -----------------------

-- A counter that is missing is counted. (It is NULL once an attachment without a size was stored.)
INSERT INTO globalintegers (key, value)
    SELECT missing.key,
           CASE missing.key
               WHEN 0 THEN (SELECT coalesce(sum(compressedsize), 0) FROM attachedfiles)
               WHEN 1 THEN (SELECT coalesce(sum(uncompressedsize), 0) FROM attachedfiles)
               WHEN 6 THEN (SELECT coalesce(max(seq), 0) FROM changes)
               ELSE (SELECT count(*) FROM resources WHERE resourcetype = missing.key - 2)
           END
        FROM generate_series(0, 6) AS missing (key)
        WHERE NOT EXISTS (
            SELECT FROM globalintegers known WHERE known.key = missing.key AND known.value IS NOT NULL)
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;

-- What has happened to the counters 0 to 5 since they were last brought up to date.
CREATE TABLE globalintegerschanges (
    key integer,
    value bigint
);

DROP TRIGGER IF EXISTS countresourcestracker ON resources;
DROP FUNCTION IF EXISTS countresourcestrackerfunc();

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

CREATE TRIGGER incrementresourcestracker AFTER INSERT ON resources
    FOR EACH ROW EXECUTE FUNCTION incrementresourcestrackerfunc();
CREATE TRIGGER decrementresourcestracker AFTER DELETE ON resources
    FOR EACH ROW EXECUTE FUNCTION decrementresourcestrackerfunc();

-- Moves all notes of a counter into it. Without the counter's row they stay, and the answer is NULL.
CREATE OR REPLACE FUNCTION updatesinglestatistic(statistics_key integer, OUT new_value bigint)
LANGUAGE plpgsql AS $$
BEGIN
    WITH noted AS (
        DELETE FROM globalintegerschanges
            WHERE key = statistics_key AND EXISTS (SELECT FROM globalintegers WHERE key = statistics_key)
            RETURNING value
    )
    UPDATE globalintegers SET value = value + (SELECT coalesce(sum(noted.value), 0) FROM noted)
        WHERE key = statistics_key
        RETURNING value INTO new_value;
END
$$;

CREATE OR REPLACE FUNCTION updatestatistics(
    OUT patients_cunt bigint, OUT studies_count bigint, OUT series_count bigint, OUT instances_count bigint,
    OUT total_compressed_size bigint, OUT total_uncompressed_size bigint)
LANGUAGE plpgsql AS $$
BEGIN
    -- Always in the same order: two sessions wait for each other, but never in a circle.
    total_compressed_size := updatesinglestatistic(0);
    total_uncompressed_size := updatesinglestatistic(1);
    patients_cunt := updatesinglestatistic(2);
    studies_count := updatesinglestatistic(3);
    series_count := updatesinglestatistic(4);
    instances_count := updatesinglestatistic(5);
END
$$;


-- The recycling order: numbered by counter 7 ----------------------------------------------------------------

INSERT INTO globalintegers (key, value)
    SELECT 7, greatest((SELECT max(seq) FROM patientrecyclingorder),
                       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END
                            FROM patientrecyclingorder_seq_seq))
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;

DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);  -- left behind by an older script

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

CREATE OR REPLACE FUNCTION patientaddedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.resourcetype = 0 THEN
        PERFORM patientaddedorupdated(NEW.internalid, 0);
    END IF;
    RETURN NULL;
END
$$;


-- Adding ----------------------------------------------------------------------------------------------------

-- The last of equal pairs (id, type) wins. Sorted, so that two sessions never wait for each other in a circle.
CREATE OR REPLACE FUNCTION insertorupdatemetadata(
    resource_ids bigint[], metadata_types integer[], metadata_values text[], revisions integer[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(cardinality(resource_ids), 0) = 0 THEN
        RAISE EXCEPTION 'insertorupdatemetadata() was called without a resource'
            USING ERRCODE = '22004';  -- null_value_not_allowed
    END IF;
    INSERT INTO metadata (id, type, value, revision)
        SELECT DISTINCT ON (resource, metadata_types[n])
                resource, metadata_types[n], metadata_values[n], revisions[n]
            FROM unnest(resource_ids) WITH ORDINALITY AS given (resource, n)
            ORDER BY resource, metadata_types[n], n DESC
        ON CONFLICT (id, type) DO UPDATE SET value = EXCLUDED.value, revision = EXCLUDED.revision;
END
$$;

DROP FUNCTION IF EXISTS createinstance(text, text, text, text);

-- Finds or creates an instance and its ancestors; what exists is locked until the end of the transaction.
CREATE FUNCTION createinstance(
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


-- Deleting: what is removed is left for Orthanc in temporary tables of its session --------------------------

DROP TABLE IF EXISTS deletedfiles, deletedresources, remainingancestor;

-- What a deletion removes is left for Orthanc in two temporary tables of its session, until the next one.
CREATE OR REPLACE FUNCTION createdeletedfilestemporarytable() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass('pg_temp.deletedfiles') IS NULL THEN
        CREATE TEMPORARY TABLE deletedfiles (
            uuid varchar(64) NOT NULL,
            filetype integer,
            compressedsize bigint,
            uncompressedsize bigint,
            compressiontype integer,
            uncompressedhash varchar(40),
            compressedhash varchar(40)
        );
    ELSE
        DELETE FROM pg_temp.deletedfiles;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION resourcedeletedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deletedresources (resourcetype, publicid) VALUES (OLD.resourcetype, OLD.publicid);
    -- Locked before anybody looks for its children: without the lock, two sessions that delete the last
    -- instances of two sibling series would each see the other's series, and leave the study childless.
    PERFORM FROM resources WHERE internalid = OLD.parentid FOR UPDATE;
    IF FOUND AND NOT EXISTS (SELECT FROM resources WHERE parentid = OLD.parentid) THEN
        DELETE FROM resources WHERE internalid = OLD.parentid;
    END IF;
    RETURN NULL;
END
$$;

-- Deletes a resource, all below it, and the ancestors that have no other child. Returns the direct parent if
-- that one stays.
CREATE OR REPLACE FUNCTION deleteresource(
    id bigint, OUT remaining_ancestor_resource_type integer, OUT remaining_anncestor_public_id text)
LANGUAGE plpgsql AS $$
DECLARE
    parent bigint;
BEGIN
    PERFORM createdeletedfilestemporarytable();
    IF to_regclass('pg_temp.deletedresources') IS NULL THEN
        CREATE TEMPORARY TABLE deletedresources (
            resourcetype integer NOT NULL,
            publicid varchar(64) NOT NULL
        );
    ELSE
        DELETE FROM pg_temp.deletedresources;
    END IF;

    -- The parent first: two sessions that delete its last two children then come one after the other.
    SELECT parentid INTO parent FROM resources WHERE internalid = deleteresource.id;
    PERFORM FROM resources WHERE internalid = parent FOR UPDATE;
    DELETE FROM resources WHERE internalid = deleteresource.id;
    SELECT resourcetype, publicid INTO remaining_ancestor_resource_type, remaining_anncestor_public_id
        FROM resources WHERE internalid = parent;
END
$$;


-- Labels: plugin 4.0 had none -------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS labels (
    id bigint REFERENCES resources ON DELETE CASCADE,
    label text,
    PRIMARY KEY (id, label)
);
CREATE INDEX IF NOT EXISTS labelsindex1 ON labels (id);
CREATE INDEX IF NOT EXISTS labelsindex2 ON labels (label);


-- What older scripts may have left behind -------------------------------------------------------------------

CREATE INDEX IF NOT EXISTS childrenindex ON resources (parentid);
DROP TABLE IF EXISTS invalidchildcounts;
DROP FUNCTION IF EXISTS updateinvalidchildcounts();
DROP FUNCTION IF EXISTS computestatisticsreadonly(integer);
DELETE FROM globalproperties WHERE property = 14;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '2' WHERE property = 4;
