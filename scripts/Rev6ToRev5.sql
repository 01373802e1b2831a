-- From revision 6 (PostgreSQL plugin 9.0) to revision 5 (plugin 8.0).
--
-- Kept aside, and brought back by Rev5ToRev6.sql: the audit logs, and the places of protected patients in the
-- recycling order. The order and the protection of all patients stay as they are.
--
-- What takes time on a large index can be made beforehand, beside a working Orthanc; it is used if it is valid:
--   ALTER TABLE resources ADD CONSTRAINT pgorthanc_cascade FOREIGN KEY (parentid) REFERENCES resources ON DELETE CASCADE NOT VALID;
--   ALTER TABLE resources VALIDATE CONSTRAINT pgorthanc_cascade;
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev6ToRev5.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 5.


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
LOCK TABLE resources, metadata, auditlogs, globalintegers, globalintegerschanges, invalidchildcounts
    IN SHARE ROW EXCLUSIVE MODE;


-- Audit logs: kept aside, as they are -----------------------------------------------------------------------

-- The table and its indexes are only renamed, whatever their size.
DO $$
DECLARE
    relation record;
BEGIN
    IF EXISTS (SELECT FROM auditlogs) AND to_regclass('pgorthanc_kept_auditlogs') IS NULL THEN
        FOR relation IN
            SELECT 'auditlogs'::regclass AS id, 'auditlogs' AS name
            UNION ALL
            SELECT indexrelid, relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                WHERE indrelid = 'auditlogs'::regclass
        LOOP
            EXECUTE format('ALTER TABLE %s RENAME TO %I', relation.id, 'pgorthanc_kept_' || relation.name);
        END LOOP;
    ELSIF EXISTS (SELECT FROM auditlogs) THEN
        -- An earlier downgrade kept some, and the plugin has upgraded the index since.
        INSERT INTO pgorthanc_kept_auditlogs SELECT * FROM auditlogs;
    END IF;
END
$$;

DROP TABLE IF EXISTS auditlogs;


-- The recycling order and the protection of patients: out of the metadata, into a table of its own ----------

DO $$
DECLARE
    wrong bigint;
    example text;
BEGIN
    SELECT count(*), min(publicid) INTO wrong, example FROM resources
        WHERE resourcetype = 0
            AND (SELECT value !~ '^[0-9]{1,18}$' FROM metadata WHERE id = internalid AND type = 19);
    IF wrong > 0 THEN
        RAISE EXCEPTION 'the place in the recycling order (metadata 19) of % patients is not a number', wrong
            USING DETAIL = format('One of them is %s.', example),
                  HINT = 'Delete that metadata: such patients go to the end of the order.';
    END IF;
END
$$;

CREATE TABLE patientrecyclingorder (
    seq bigserial PRIMARY KEY,
    patientid bigint CONSTRAINT uniquepatientid UNIQUE REFERENCES resources ON DELETE CASCADE
);

-- Kept aside: the places of protected patients, which have no row in the order below revision 6, and a
-- metadata 18 that does not mean protection. Those of an earlier downgrade are out of date.
DROP TABLE IF EXISTS pgorthanc_kept_recycling;
CREATE TABLE pgorthanc_kept_recycling (id bigint PRIMARY KEY, seq bigint, isprotected text);

-- All patients are numbered in one order, the protected ones leave gaps: so their places mean the same later.
-- A patient that is neither protected nor in the order goes to its end: without a row it would be protected.
WITH patients AS (
    SELECT id, isprotected, place, row_number() OVER (ORDER BY place, id) AS seq
        FROM (SELECT internalid AS id,
                     (SELECT value FROM metadata WHERE id = internalid AND type = 18) AS isprotected,
                     (SELECT value::bigint FROM metadata WHERE id = internalid AND type = 19) AS place
                  FROM resources WHERE resourcetype = 0) patient
), unprotected AS (
    INSERT INTO patientrecyclingorder (seq, patientid)
        SELECT seq, id FROM patients WHERE isprotected IS DISTINCT FROM 'true' ORDER BY seq
), kept AS (
    INSERT INTO pgorthanc_kept_recycling (id, seq, isprotected)
        SELECT id, CASE WHEN isprotected = 'true' THEN seq END, nullif(isprotected, 'true')
            FROM patients
            WHERE isprotected <> 'true' OR isprotected = 'true' AND place IS NOT NULL
)
-- = ANY (ARRAY(...)) keeps to the primary key: the metadata of an archive are many, and have no index on type.
DELETE FROM metadata WHERE id = ANY (ARRAY(SELECT id FROM patients)) AND type BETWEEN 18 AND 19;

DO $$
BEGIN
    PERFORM setval('patientrecyclingorder_seq_seq', last.seq)
        FROM (SELECT max(seq) AS seq FROM (SELECT seq FROM patientrecyclingorder
                                           UNION ALL SELECT seq FROM pgorthanc_kept_recycling) place) last
        WHERE last.seq IS NOT NULL;
    IF NOT EXISTS (SELECT FROM pgorthanc_kept_recycling) THEN
        DROP TABLE pgorthanc_kept_recycling;
    END IF;
END
$$;

CREATE INDEX patientrecyclingindex ON patientrecyclingorder (patientid);

DROP SEQUENCE IF EXISTS patientrecyclingordersequence;
DROP FUNCTION IF EXISTS protectpatient(bigint);
DROP FUNCTION IF EXISTS unprotectpatient(bigint);
DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);

-- Puts the patient at the end of the order. A protected one (no row) stays protected by an update.
CREATE OR REPLACE FUNCTION patientaddedorupdated(patient_id bigint, is_update bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF is_update > 0 THEN
        UPDATE patientrecyclingorder SET seq = DEFAULT WHERE patientid = patient_id;
    ELSE
        INSERT INTO patientrecyclingorder (patientid) VALUES (patient_id);
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
        INSERT INTO resources (resourcetype, publicid, parentid, childcount)
            VALUES (level - 1, public_ids[level], ids[level - 1], 0)
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


-- Deleting: the foreign key takes the descendants, a trigger the ancestors ----------------------------------

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

DROP FUNCTION IF EXISTS deleteattachment(bigint, integer);


-- Counters and numbers of children --------------------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION updateinvalidchildcounts(OUT updated_rows_count bigint)
LANGUAGE plpgsql AS $$
DECLARE
    marked bigint[];
BEGIN
    marked := ARRAY(
        SELECT internalid FROM resources WHERE internalid = ANY (ARRAY(SELECT id FROM invalidchildcounts))
            ORDER BY internalid FOR UPDATE);
    -- A statement of its own, hence a snapshot taken under the locks: nobody has counted since. It sees a
    -- child if and only if it sees that child's mark.
    WITH unmarked AS (
        DELETE FROM invalidchildcounts WHERE id = ANY (marked)
    )
    UPDATE resources parent
        SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
        WHERE parent.internalid = ANY (marked);
    GET DIAGNOSTICS updated_rows_count = ROW_COUNT;
END
$$;

DROP INDEX IF EXISTS invalidchildcountsid;


-- What older scripts may have left behind -------------------------------------------------------------------

ALTER TABLE queues DROP COLUMN IF EXISTS reserveduntil;
DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;


-- The tree of resources: what is below a deleted resource goes with it --------------------------------------

-- The new constraint first, and readers wait only from the first trigger on. One that was made beforehand
-- (NOT VALID, then validated beside a working Orthanc) is used.
DO $$
DECLARE
    older text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = 'resources'::regclass AND conname = 'pgorthanc_cascade') THEN
        ALTER TABLE resources ADD CONSTRAINT pgorthanc_cascade
            FOREIGN KEY (parentid) REFERENCES resources ON DELETE CASCADE NOT VALID;
    END IF;
    ALTER TABLE resources VALIDATE CONSTRAINT pgorthanc_cascade;
    FOR older IN
        SELECT conname FROM pg_constraint
            WHERE conrelid = 'resources'::regclass AND contype = 'f' AND conname <> 'pgorthanc_cascade'
    LOOP
        EXECUTE format('ALTER TABLE resources DROP CONSTRAINT %I', older);
    END LOOP;
    ALTER TABLE resources RENAME CONSTRAINT pgorthanc_cascade TO resources_parentid_fkey;
END
$$;

CREATE TRIGGER patientadded AFTER INSERT ON resources FOR EACH ROW EXECUTE FUNCTION patientaddedfunc();
CREATE TRIGGER resourcedeleted AFTER DELETE ON resources FOR EACH ROW EXECUTE FUNCTION resourcedeletedfunc();


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '5' WHERE property = 4;
