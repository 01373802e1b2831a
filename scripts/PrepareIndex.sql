-- The Orthanc index at revision 10 (PostgreSQL plugin 10.0 and later).
--
--   an empty schema           becomes an index at revision 10;
--   an index at revision 10   gets back what it lacks: tables, indexes, functions, triggers, properties, counters;
--   anything else             is refused, and nothing is changed.
--
-- No schema is named: everything goes to the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f PrepareIndex.sql
-- while no Orthanc works on the database.
--
-- = ANY (ARRAY(SELECT ...)) instead of IN (SELECT ...) keeps to the index whatever the statistics of a table say:
-- a server that has not analysed it yet would read it as a whole, in each call of a session.
--
-- The names, the order of columns, and the names of arguments are part of the interface: Orthanc inserts by
-- position, and a later plugin replaces the functions in place.


-- Refuse what is neither empty nor at revision 10 -----------------------------------------------------------

DO $$
DECLARE
    tables CONSTANT text[] := ARRAY[
        'globalproperties', 'serverproperties', 'resources', 'maindicomtags', 'dicomidentifiers', 'metadata',
        'attachedfiles', 'changes', 'exportedresources', 'labels', 'globalintegers', 'globalintegerschanges',
        'invalidchildcounts', 'keyvaluestores', 'queues', 'auditlogs', 'patientrecyclingordersequence'];
    older_tables CONSTANT text[] := ARRAY[
        'patientrecyclingorder', 'deletedfiles', 'deletedresources', 'remainingancestor'];
    here text[];
    version text;
    revision text;
    differs text;
BEGIN
    IF current_schema() IS NULL THEN
        RAISE EXCEPTION 'search_path (%) names no schema that exists', current_setting('search_path')
            USING ERRCODE = 'invalid_schema_name', HINT = 'Create the schema, or set search_path.';
    END IF;

    SELECT array_agg(relname::text ORDER BY relname) INTO here FROM pg_class
        WHERE relnamespace = quote_ident(current_schema())::regnamespace
            AND relname = ANY (tables || older_tables);
    IF here IS NULL THEN
        RETURN;
    END IF;

    IF NOT here @> ARRAY['globalproperties', 'resources'] THEN
        RAISE EXCEPTION 'schema % holds %, but no Orthanc index', current_schema(), array_to_string(here, ', ')
            USING HINT = 'Use an empty schema.';
    END IF;
    SELECT max(value) FILTER (WHERE property = 1), max(value) FILTER (WHERE property = 4)
        INTO version, revision FROM globalproperties;
    IF version <> '6' OR revision IS DISTINCT FROM '10' THEN
        RAISE EXCEPTION 'the index in schema % has version % and revision %, expected 6 and 10, or an empty schema',
            current_schema(), version, coalesce(revision, 'unknown') USING HINT = 'Run: pgorthanc upgrade';
    END IF;

    -- Property 4 may lie: look at what distinguishes the layout of revision 10 from older ones.
    SELECT string_agg(wanted.relation || '.' || wanted.attribute, ', ') INTO differs
        FROM (VALUES ('resources', 'childcount'), ('metadata', 'revision'), ('attachedfiles', 'customdata'),
                     ('globalintegerschanges', 'pk'), ('invalidchildcounts', 'pk'), ('queues', 'reserveduntil'))
             AS wanted (relation, attribute)
        WHERE wanted.relation = ANY (here) AND NOT EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(wanted.relation) AND attname = wanted.attribute AND NOT attisdropped);
    IF differs IS NOT NULL OR here && older_tables THEN
        RAISE EXCEPTION 'the index in schema % is recorded at revision 10, but has another layout', current_schema()
            USING DETAIL = coalesce('Missing: ' || differs || '. ', '') || 'Tables: ' || array_to_string(here, ', '),
                  HINT = 'Run: pgorthanc upgrade';
    END IF;
END
$$;


-- Tables ----------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS globalproperties (
    property integer PRIMARY KEY,
    value text
);

CREATE TABLE IF NOT EXISTS serverproperties (
    server varchar(64) NOT NULL,
    property integer NOT NULL,
    value text,
    PRIMARY KEY (server, property)
);

-- resourcetype: 0 patient, 1 study, 2 series, 3 instance.
-- childcount: NULL means "count them"; so does a mark in invalidchildcounts.
CREATE TABLE IF NOT EXISTS resources (
    internalid bigserial PRIMARY KEY,
    resourcetype integer NOT NULL,
    publicid varchar(64) NOT NULL CONSTRAINT uniquepublicid UNIQUE,
    parentid bigint REFERENCES resources,
    childcount integer
);

CREATE TABLE IF NOT EXISTS maindicomtags (
    id bigint REFERENCES resources ON DELETE CASCADE,
    taggroup integer,
    tagelement integer,
    value text,
    PRIMARY KEY (id, taggroup, tagelement)
);

CREATE TABLE IF NOT EXISTS dicomidentifiers (
    id bigint REFERENCES resources ON DELETE CASCADE,
    taggroup integer,
    tagelement integer,
    value text,
    PRIMARY KEY (id, taggroup, tagelement)
);

-- type 18 `true` protects a patient; type 19 is the patient's place in the recycling order.
CREATE TABLE IF NOT EXISTS metadata (
    id bigint REFERENCES resources ON DELETE CASCADE,
    type integer,
    value text,
    revision integer,
    PRIMARY KEY (id, type)
);

CREATE TABLE IF NOT EXISTS attachedfiles (
    id bigint REFERENCES resources ON DELETE CASCADE,
    filetype integer,
    uuid varchar(64) NOT NULL,
    compressedsize bigint,
    uncompressedsize bigint,
    compressiontype integer,
    uncompressedhash varchar(40),
    compressedhash varchar(40),
    revision integer,
    customdata bytea,
    PRIMARY KEY (id, filetype)
);

CREATE TABLE IF NOT EXISTS changes (
    seq bigserial PRIMARY KEY,
    changetype integer,
    internalid bigint REFERENCES resources ON DELETE CASCADE,
    resourcetype integer,
    date varchar(64)
);

CREATE TABLE IF NOT EXISTS exportedresources (
    seq bigserial PRIMARY KEY,
    resourcetype integer,
    publicid varchar(64),
    remotemodality text,
    patientid varchar(64),
    studyinstanceuid text,
    seriesinstanceuid text,
    sopinstanceuid text,
    date varchar(64)
);

CREATE TABLE IF NOT EXISTS labels (
    id bigint REFERENCES resources ON DELETE CASCADE,
    label text,
    PRIMARY KEY (id, label)
);

-- key: 0 compressed size, 1 uncompressed size, 2 patients, 3 studies, 4 series, 5 instances, 6 last change.
CREATE TABLE IF NOT EXISTS globalintegers (
    key integer PRIMARY KEY,
    value bigint
);

-- What has happened to the counters 0 to 5 since they were last brought up to date.
CREATE TABLE IF NOT EXISTS globalintegerschanges (
    pk bigserial PRIMARY KEY,
    key integer,
    value bigint
);

-- Marks the resources whose childcount is out of date.
CREATE TABLE IF NOT EXISTS invalidchildcounts (
    pk bigserial PRIMARY KEY,
    id bigint REFERENCES resources ON DELETE CASCADE,
    updatedat timestamp DEFAULT now()
);

CREATE TABLE IF NOT EXISTS keyvaluestores (
    storeid text,
    key text,
    value bytea NOT NULL,
    PRIMARY KEY (storeid, key)
);

-- reserveduntil: seconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS queues (
    id bigserial PRIMARY KEY,
    queueid text NOT NULL,
    value bytea NOT NULL,
    reserveduntil bigint
);

CREATE TABLE IF NOT EXISTS auditlogs (
    ts timestamp DEFAULT now(),
    sourceplugin text NOT NULL,
    userid text NOT NULL,
    resourcetype integer NOT NULL,
    resourceid varchar(64) NOT NULL,
    action text NOT NULL,
    logdata bytea
);

CREATE SEQUENCE IF NOT EXISTS patientrecyclingordersequence;


-- Indexes ---------------------------------------------------------------------------------------------------

CREATE INDEX IF NOT EXISTS childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid);
CREATE INDEX IF NOT EXISTS publicindex ON resources (publicid);
CREATE INDEX IF NOT EXISTS resourcetypeindex ON resources (resourcetype);
CREATE INDEX IF NOT EXISTS maindicomtagsindex ON maindicomtags (id);
CREATE INDEX IF NOT EXISTS dicomidentifiersindex1 ON dicomidentifiers (id);
CREATE INDEX IF NOT EXISTS dicomidentifiersindex2 ON dicomidentifiers (taggroup, tagelement);
CREATE INDEX IF NOT EXISTS dicomidentifiersindex3 ON dicomidentifiers (taggroup, tagelement, value);
CREATE INDEX IF NOT EXISTS dicomidentifiersindexvalues ON dicomidentifiers (value);
CREATE INDEX IF NOT EXISTS changesindex ON changes (internalid);
CREATE INDEX IF NOT EXISTS labelsindex1 ON labels (id);
CREATE INDEX IF NOT EXISTS labelsindex2 ON labels (label);
CREATE INDEX IF NOT EXISTS queuesindex ON queues (queueid, id);
CREATE INDEX IF NOT EXISTS auditlogsuserid ON auditlogs (userid);
CREATE INDEX IF NOT EXISTS auditlogsresourceid ON auditlogs (resourceid);
CREATE INDEX IF NOT EXISTS auditlogsaction ON auditlogs (action);
CREATE INDEX IF NOT EXISTS auditlogssourceplugin ON auditlogs (sourceplugin);
CREATE INDEX IF NOT EXISTS invalidchildcountsid ON invalidchildcounts (id);

-- The trigram index speeds up searches with wildcards. Orthanc works without it, so a server without pg_trgm,
-- or a role that may not create it, costs a warning only. pg_trgm is used wherever it is; a new one goes to
-- public, where the plugin looks for it.
DO $$
DECLARE
    trgm_schema text;
BEGIN
    IF to_regclass(quote_ident(current_schema()) || '.dicomidentifiersindexvalues2') IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm') THEN
        EXECUTE format('CREATE EXTENSION pg_trgm SCHEMA %s',
                       coalesce(to_regnamespace('public'), quote_ident(current_schema())::regnamespace));
    END IF;
    SELECT extnamespace::regnamespace::text INTO trgm_schema FROM pg_extension WHERE extname = 'pg_trgm';
    EXECUTE format('CREATE INDEX dicomidentifiersindexvalues2 ON dicomidentifiers USING gin (value %s.gin_trgm_ops)',
                   trgm_schema);
EXCEPTION
    -- in this order: not allowed; not available (before and since PostgreSQL 13)
    WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
        RAISE WARNING 'no trigram index, so searches with wildcards will be slow: %', SQLERRM
            USING HINT = 'Have an administrator run CREATE EXTENSION pg_trgm, then run this script again.';
END
$$;


-- Functions that keep the counters ---------------------------------------------------------------------------

-- The triggers only note what happened: writers never wait for each other at a counter.
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

-- GREATEST: of two writers, the one with the lower number may come last.
CREATE OR REPLACE FUNCTION insertedchangefunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE globalintegers SET value = GREATEST(value, NEW.seq) WHERE key = 6;
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

CREATE OR REPLACE FUNCTION computestatisticsreadonly(statistics_key integer, OUT accumulated_value bigint)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT value + (SELECT coalesce(sum(c.value), 0) FROM globalintegerschanges c WHERE c.key = statistics_key)
        INTO accumulated_value
        FROM globalintegers WHERE key = statistics_key;
END
$$;


-- Functions that keep the numbers of children ----------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION computemissingchildcount(batch_size bigint, OUT updated_rows_count bigint)
LANGUAGE plpgsql AS $$
DECLARE
    missing bigint[];
BEGIN
    missing := ARRAY(
        SELECT internalid FROM resources WHERE resourcetype < 3 AND childcount IS NULL
            LIMIT batch_size FOR NO KEY UPDATE);
    -- A statement of its own, hence a snapshot taken under the locks: who has added a child and locked its
    -- parent before is seen, and who does so now finds the number.
    UPDATE resources parent
        SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
        WHERE parent.internalid = ANY (missing);
    GET DIAGNOSTICS updated_rows_count = ROW_COUNT;
END
$$;


-- Functions that add -----------------------------------------------------------------------------------------

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


-- Functions that delete --------------------------------------------------------------------------------------

-- What a deletion removes is left for Orthanc in two temporary tables of its session, until the next deletion.
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
            compressedhash varchar(40),
            revision integer,
            customdata bytea
        );
    ELSE
        DELETE FROM pg_temp.deletedfiles;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION attachedfiledeletedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deletedfiles (uuid, filetype, compressedsize, uncompressedsize, compressiontype,
                              uncompressedhash, compressedhash, revision, customdata)
        VALUES (OLD.uuid, OLD.filetype, OLD.compressedsize, OLD.uncompressedsize, OLD.compressiontype,
                OLD.uncompressedhash, OLD.compressedhash, OLD.revision, OLD.customdata);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION deleteattachment(resource_id bigint, file_type integer)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM createdeletedfilestemporarytable();
    DELETE FROM attachedfiles WHERE id = resource_id AND filetype = file_type;
END
$$;

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


-- Triggers, where they are missing: replacing one would lock its table against readers ------------------------

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('attachedfiledeleted', 'DELETE', 'attachedfiles', '', 'attachedfiledeletedfunc'),
            ('attachedfileincrementsize', 'INSERT', 'attachedfiles', '', 'attachedfileincrementsizefunc'),
            ('attachedfiledecrementsize', 'DELETE', 'attachedfiles', '', 'attachedfiledecrementsizefunc'),
            ('insertedchange', 'INSERT', 'changes', '', 'insertedchangefunc'),
            ('incrementresourcestracker', 'INSERT', 'resources', '', 'incrementresourcestrackerfunc'),
            ('decrementresourcestracker', 'DELETE', 'resources', '', 'decrementresourcestrackerfunc'),
            ('incrementchildcount', 'INSERT', 'resources', '', 'updatechildcount'),
            ('decrementchildcount', 'DELETE', 'resources', 'WHEN (OLD.parentid IS NOT NULL)', 'updatechildcount')
        ) AS trigger (name, event, relation, condition, function)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgrelid = to_regclass(trigger.relation) AND tgname = trigger.name)
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %I FOR EACH ROW %s EXECUTE FUNCTION %I()',
                       wanted.name, wanted.event, wanted.relation, wanted.condition, wanted.function);
    END LOOP;
END
$$;


-- Counters and properties ------------------------------------------------------------------------------------

-- A counter that is missing is what there is, without the notes that are still to be added to it. Nothing is
-- counted for a counter that exists.
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

-- 1 version of the database, 6 total size is fast, 10 trigram index (1 even without one: for anything else the
-- plugin takes the index for one at revision 1), 11 createinstance, 12 counters, 13 last change,
-- 14 computestatisticsreadonly.
INSERT INTO globalproperties (property, value)
    VALUES (1, '6'), (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value
        WHERE globalproperties.value IS DISTINCT FROM EXCLUDED.value;

-- The revision, last.
INSERT INTO globalproperties (property, value) VALUES (4, '10')
    ON CONFLICT (property) DO NOTHING;
