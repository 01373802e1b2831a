-- From revision 5 (PostgreSQL plugin 8.0) to revision 6 (plugin 9.0).
--
-- Brings back what Rev6ToRev5.sql kept aside: the audit logs, and the places of protected patients in the
-- recycling order. The order and the protection of all patients stay as they are.
--
-- What takes time on a large index can be made beforehand, beside a working Orthanc; it is used if it is valid:
--   ALTER TABLE resources ADD CONSTRAINT pgorthanc_no_action FOREIGN KEY (parentid) REFERENCES resources NOT VALID;
--   ALTER TABLE resources VALIDATE CONSTRAINT pgorthanc_no_action;
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev5ToRev6.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 6.


-- Refuse anything but revision 5 ----------------------------------------------------------------------------

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
                     ('attachedfiles.customdata', true), ('globalintegerschanges.pk', false),
                     ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '5'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 5, found in schema %: %', index_schema,
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
LOCK TABLE resources, metadata, patientrecyclingorder, invalidchildcounts, globalintegers,
        globalintegerschanges
    IN SHARE ROW EXCLUSIVE MODE;


-- The recycling order and the protection of patients: into the metadata -------------------------------------

DO $$
DECLARE
    nobodys bigint;
BEGIN
    SELECT count(*) INTO nobodys FROM patientrecyclingorder WHERE patientid IS NULL;
    IF nobodys > 0 THEN
        RAISE EXCEPTION '% rows of patientrecyclingorder name no patient', nobodys
            USING HINT = 'Run: DELETE FROM patientrecyclingorder WHERE patientid IS NULL;';
    END IF;
END
$$;

-- What Rev6ToRev5.sql kept aside: the places of patients that are still protected come back between the
-- others, and so does a metadata 18 that does not mean protection.
CREATE TABLE IF NOT EXISTS pgorthanc_kept_recycling (id bigint PRIMARY KEY, seq bigint, isprotected text);

-- = ANY (ARRAY(...)) keeps to the primary key: the metadata of an archive are many, and have no index on type.
DELETE FROM metadata
    WHERE id = ANY (ARRAY(SELECT internalid FROM resources WHERE resourcetype = 0)) AND type BETWEEN 18 AND 19;

-- A patient without a row in the order is protected. The places are given anew, from 1 on: the plugin reads
-- them as 32-bit integers.
WITH patients AS (
    SELECT internalid AS id, coalesce(place.seq, kept.seq) AS seq,
           CASE WHEN place.seq IS NULL THEN 'true' ELSE kept.isprotected END AS isprotected
        FROM resources
        LEFT JOIN patientrecyclingorder place ON place.patientid = internalid
        LEFT JOIN pgorthanc_kept_recycling kept ON kept.id = internalid
        WHERE resourcetype = 0
)
INSERT INTO metadata (id, type, value, revision)
    SELECT id, 18, isprotected, 0 FROM patients WHERE isprotected IS NOT NULL
    UNION ALL
    SELECT id, 19, row_number() OVER (ORDER BY seq, id)::text, 0 FROM patients WHERE seq IS NOT NULL
    ORDER BY id; -- as the primary key is: its pages are visited once

CREATE SEQUENCE IF NOT EXISTS patientrecyclingordersequence;
DO $$
DECLARE
    places bigint;
BEGIN
    -- Not fewer than the places that were given.
    SELECT (SELECT count(*) FROM patientrecyclingorder)
           + (SELECT count(*) FROM pgorthanc_kept_recycling WHERE seq IS NOT NULL) INTO places;
    PERFORM setval('patientrecyclingordersequence', greatest(places, 1), places > 0);
END
$$;

DROP TABLE pgorthanc_kept_recycling;
DROP FUNCTION IF EXISTS patientaddedorupdated(bigint, bigint);

-- Puts the patient at the end of the recycling order, whether it is protected or not.
CREATE OR REPLACE FUNCTION patientaddedorupdated(patient_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metadata (id, type, value, revision)
        VALUES (patient_id, 19, nextval('patientrecyclingordersequence'), 0)
        ON CONFLICT (id, type) DO UPDATE SET value = EXCLUDED.value, revision = EXCLUDED.revision;
END
$$;

CREATE OR REPLACE FUNCTION protectpatient(patient_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metadata (id, type, value, revision) VALUES (patient_id, 18, 'true', 0)
        ON CONFLICT (id, type) DO UPDATE SET value = EXCLUDED.value, revision = EXCLUDED.revision;
END
$$;

CREATE OR REPLACE FUNCTION unprotectpatient(patient_id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM metadata WHERE id = patient_id AND type = 18;
    PERFORM patientaddedorupdated(patient_id);
END
$$;

-- Finds or creates an instance and its ancestors. In a series that exists already, this is one look-up of all
-- four, one insert, and the patient's place in the recycling order; the series then keeps its own ancestors,
-- and the given patient and study are only looked up.
CREATE OR REPLACE FUNCTION createinstance(
    patient_public_id text, study_public_id text, series_public_id text, instance_public_id text,
    OUT is_new_patient bigint, OUT is_new_study bigint, OUT is_new_series bigint, OUT is_new_instance bigint,
    OUT patient_internal_id bigint, OUT study_internal_id bigint, OUT series_internal_id bigint,
    OUT instance_internal_id bigint)
LANGUAGE plpgsql AS $$
BEGIN
    is_new_patient := 0;
    is_new_study := 0;
    is_new_series := 0;
    is_new_instance := 0;
    SELECT (SELECT internalid FROM resources WHERE publicid = patient_public_id),
           (SELECT internalid FROM resources WHERE publicid = study_public_id),
           (SELECT internalid FROM resources WHERE publicid = series_public_id),
           (SELECT internalid FROM resources WHERE publicid = instance_public_id)
        INTO patient_internal_id, study_internal_id, series_internal_id, instance_internal_id;

    -- Each of the following inserts may find that another session was faster (it has then waited for that
    -- session to commit). STRICT: should that row be gone again meanwhile, fail rather than lose the parent.
    IF series_internal_id IS NULL THEN
        IF patient_internal_id IS NULL THEN
            INSERT INTO resources (resourcetype, publicid, parentid, childcount)
                VALUES (0, patient_public_id, NULL, 0)
                ON CONFLICT (publicid) DO NOTHING RETURNING 1, internalid INTO is_new_patient, patient_internal_id;
            IF NOT FOUND THEN
                SELECT 0, internalid INTO STRICT is_new_patient, patient_internal_id
                    FROM resources WHERE publicid = patient_public_id;
            END IF;
        END IF;

        IF study_internal_id IS NULL THEN
            INSERT INTO resources (resourcetype, publicid, parentid, childcount)
                VALUES (1, study_public_id, patient_internal_id, 0)
                ON CONFLICT (publicid) DO NOTHING RETURNING 1, internalid INTO is_new_study, study_internal_id;
            IF NOT FOUND THEN
                SELECT 0, internalid INTO STRICT is_new_study, study_internal_id
                    FROM resources WHERE publicid = study_public_id;
            END IF;
        END IF;

        INSERT INTO resources (resourcetype, publicid, parentid, childcount)
            VALUES (2, series_public_id, study_internal_id, 0)
            ON CONFLICT (publicid) DO NOTHING RETURNING 1, internalid INTO is_new_series, series_internal_id;
        IF NOT FOUND THEN
            SELECT 0, internalid INTO STRICT is_new_series, series_internal_id
                FROM resources WHERE publicid = series_public_id;
        END IF;
    END IF;

    IF instance_internal_id IS NULL THEN
        INSERT INTO resources (resourcetype, publicid, parentid, childcount)
            VALUES (3, instance_public_id, series_internal_id, 0)
            ON CONFLICT (publicid) DO NOTHING RETURNING 1, internalid INTO is_new_instance, instance_internal_id;
        IF FOUND THEN
            PERFORM patientaddedorupdated(patient_internal_id);
        ELSE
            SELECT 0, internalid INTO STRICT is_new_instance, instance_internal_id
                FROM resources WHERE publicid = instance_public_id;
        END IF;
    END IF;
END
$$;


-- Deleting: the function takes the whole tree itself --------------------------------------------------------

-- Deletes a resource, all below it, and the ancestors that have no other child. Returns the direct parent if
-- that one stays.
CREATE OR REPLACE FUNCTION deleteresource(
    id bigint, OUT remaining_ancestor_resource_type integer, OUT remaining_anncestor_public_id text)
LANGUAGE plpgsql AS $$
DECLARE
    parent bigint;
    ancestor resources;
    generation bigint[];
    tree bigint[];
BEGIN
    PERFORM createdeletedfilestemporarytable();
    IF to_regclass('pg_temp.deletedresources') IS NULL THEN
        CREATE TEMPORARY TABLE deletedresources (resourcetype integer NOT NULL, publicid varchar(64) NOT NULL);
    ELSE
        DELETE FROM pg_temp.deletedresources;
    END IF;

    -- The parent first: two sessions that delete its last two children then come one after the other.
    SELECT parentid INTO parent FROM resources WHERE internalid = deleteresource.id;
    PERFORM FROM resources WHERE internalid = parent FOR UPDATE;
    PERFORM FROM resources WHERE internalid = deleteresource.id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'resource % does not exist, or another session has just deleted it', deleteresource.id
            USING ERRCODE = 'not_null_violation';
    END IF;

    generation := ARRAY[deleteresource.id];
    WHILE cardinality(generation) > 0 LOOP
        tree := tree || generation;
        generation := ARRAY(SELECT internalid FROM resources WHERE parentid = ANY (generation));
    END LOOP;
    WITH deleted AS (
        DELETE FROM resources WHERE internalid = ANY (tree) RETURNING resourcetype, publicid
    )
    INSERT INTO pg_temp.deletedresources (resourcetype, publicid) SELECT resourcetype, publicid FROM deleted;

    -- Each ancestor is locked before anybody looks for its children: without the lock, two sessions that delete
    -- the last instances of two sibling series would each see the other's series, and leave the study childless.
    ancestor.parentid := parent;
    LOOP
        SELECT * INTO ancestor FROM resources WHERE internalid = ancestor.parentid FOR UPDATE;
        EXIT WHEN NOT FOUND OR EXISTS (SELECT FROM resources WHERE parentid = ancestor.internalid);
        DELETE FROM resources WHERE internalid = ancestor.internalid;
        INSERT INTO pg_temp.deletedresources (resourcetype, publicid)
            VALUES (ancestor.resourcetype, ancestor.publicid);
    END LOOP;

    SELECT resourcetype, publicid INTO remaining_ancestor_resource_type, remaining_anncestor_public_id
        FROM resources WHERE internalid = parent;
END
$$;

CREATE OR REPLACE FUNCTION deleteattachment(resource_id bigint, file_type integer)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM createdeletedfilestemporarytable();
    DELETE FROM attachedfiles WHERE id = resource_id AND filetype = file_type;
END
$$;


-- Counters and numbers of children --------------------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION updateinvalidchildcounts(OUT updated_rows_count bigint)
LANGUAGE plpgsql AS $$
DECLARE
    marked bigint[];
BEGIN
    marked := ARRAY(
        SELECT internalid FROM resources WHERE internalid = ANY (ARRAY(SELECT id FROM invalidchildcounts))
            ORDER BY internalid FOR UPDATE SKIP LOCKED);
    -- A statement of its own, hence a snapshot taken under the locks: nobody has counted since. It sees a child
    -- if and only if it sees that child's mark.
    WITH unmarked AS (
        DELETE FROM invalidchildcounts WHERE id = ANY (marked)
    )
    UPDATE resources parent
        SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
        WHERE parent.internalid = ANY (marked);
    GET DIAGNOSTICS updated_rows_count = ROW_COUNT;
END
$$;

-- An invalid index is what remains of a construction that failed.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_index
                   WHERE indexrelid = to_regclass('invalidchildcountsid') AND NOT indisvalid) THEN
        DROP INDEX invalidchildcountsid;
    END IF;
END
$$;
CREATE INDEX IF NOT EXISTS invalidchildcountsid ON invalidchildcounts (id);


-- Audit logs ------------------------------------------------------------------------------------------------

-- Those that Rev6ToRev5.sql kept aside get their names back.
DO $$
DECLARE
    relation record;
BEGIN
    FOR relation IN
        SELECT oid::regclass AS id, relname AS name FROM pg_class
            WHERE oid = to_regclass('pgorthanc_kept_auditlogs')
                OR oid IN (SELECT indexrelid FROM pg_index
                               WHERE indrelid = to_regclass('pgorthanc_kept_auditlogs'))
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME TO %I', relation.id,
                       replace(relation.name, 'pgorthanc_kept_', ''));
    END LOOP;
END
$$;

CREATE TABLE IF NOT EXISTS auditlogs (
    ts timestamp DEFAULT now(),
    sourceplugin text NOT NULL,
    userid text NOT NULL,
    resourcetype integer NOT NULL,
    resourceid varchar(64) NOT NULL,
    action text NOT NULL,
    logdata bytea
);
CREATE INDEX IF NOT EXISTS auditlogsuserid ON auditlogs (userid);
CREATE INDEX IF NOT EXISTS auditlogsresourceid ON auditlogs (resourceid);
CREATE INDEX IF NOT EXISTS auditlogsaction ON auditlogs (action);
CREATE INDEX IF NOT EXISTS auditlogssourceplugin ON auditlogs (sourceplugin);


-- What older scripts may have left behind -------------------------------------------------------------------

ALTER TABLE queues DROP COLUMN IF EXISTS reserveduntil;
DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;


-- The tree of resources: nothing goes with a deleted resource by itself -------------------------------------

-- The new constraint first, and readers wait only from here on. One that was made beforehand (NOT VALID, then
-- validated beside a working Orthanc) is used.
DO $$
DECLARE
    older text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = 'resources'::regclass AND conname = 'pgorthanc_no_action') THEN
        ALTER TABLE resources ADD CONSTRAINT pgorthanc_no_action
            FOREIGN KEY (parentid) REFERENCES resources NOT VALID;
    END IF;
    ALTER TABLE resources VALIDATE CONSTRAINT pgorthanc_no_action;
    FOR older IN
        SELECT conname FROM pg_constraint
            WHERE conrelid = 'resources'::regclass AND contype = 'f' AND conname <> 'pgorthanc_no_action'
    LOOP
        EXECUTE format('ALTER TABLE resources DROP CONSTRAINT %I', older);
    END LOOP;
    ALTER TABLE resources RENAME CONSTRAINT pgorthanc_no_action TO resources_parentid_fkey;
END
$$;

DROP TABLE patientrecyclingorder;
DROP TRIGGER IF EXISTS patientadded ON resources;
DROP TRIGGER IF EXISTS resourcedeleted ON resources;
DROP FUNCTION IF EXISTS patientaddedfunc();
DROP FUNCTION IF EXISTS resourcedeletedfunc();


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '6' WHERE property = 4;
