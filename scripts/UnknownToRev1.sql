-- From revision unknown (PostgreSQL plugin 2.2 to 3.3) to revision 1 (plugin 5.0 and 5.1).
--
-- Unknown are the layouts of the plugins before 4.0; they are recorded at revision 1, too, or at none. That of
-- 4.0 lacks the labels only. Rows that are there get no revision (NULL, which is read as 0).
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f UnknownToRev1.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 1.


-- Refuse anything but the layouts of plugins 2.2 to 4.0 -----------------------------------------------------

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
        FROM (VALUES ('patientrecyclingorder.seq', true), ('metadata.type', true),
                     ('globalintegerschanges.key', false), ('labels.label', false))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision <> '1'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at no revision or an old 1, found in schema %: %',
            index_schema, concat_ws(', ', 'version ' || coalesce(recorded.version, 'none'),
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
LOCK TABLE resources, metadata, attachedfiles, changes
    IN SHARE ROW EXCLUSIVE MODE;


-- Tables ----------------------------------------------------------------------------------------------------

ALTER TABLE metadata ADD COLUMN IF NOT EXISTS revision integer;
ALTER TABLE attachedfiles ADD COLUMN IF NOT EXISTS revision integer;

CREATE TABLE IF NOT EXISTS serverproperties (
    server varchar(64) NOT NULL,
    property integer NOT NULL,
    value text,
    PRIMARY KEY (server, property)
);

CREATE TABLE IF NOT EXISTS labels (
    id bigint REFERENCES resources ON DELETE CASCADE,
    label text,
    PRIMARY KEY (id, label)
);
CREATE INDEX IF NOT EXISTS labelsindex1 ON labels (id);
CREATE INDEX IF NOT EXISTS labelsindex2 ON labels (label);

-- key: 0 compressed size, 1 uncompressed size, 2 patients, 3 studies, 4 series, 5 instances, 6 last change.
CREATE TABLE IF NOT EXISTS globalintegers (
    key integer PRIMARY KEY,
    value bigint
);


-- Counters: kept up to date at once -------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION countresourcestrackerfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE globalintegers SET value = value + 1 WHERE key = NEW.resourcetype + 2;
    ELSE
        UPDATE globalintegers SET value = value - 1 WHERE key = OLD.resourcetype + 2;
    END IF;
    RETURN NULL;
END
$$;

-- A size that is not known counts nothing: NULL would make the counter NULL for ever.
CREATE OR REPLACE FUNCTION attachedfileincrementsizefunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE globalintegers SET value = value + coalesce(NEW.compressedsize, 0) WHERE key = 0;
    UPDATE globalintegers SET value = value + coalesce(NEW.uncompressedsize, 0) WHERE key = 1;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION attachedfiledecrementsizefunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE globalintegers SET value = value - coalesce(OLD.compressedsize, 0) WHERE key = 0;
    UPDATE globalintegers SET value = value - coalesce(OLD.uncompressedsize, 0) WHERE key = 1;
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

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('attachedfileincrementsize', 'INSERT', 'attachedfiles', 'attachedfileincrementsizefunc'),
            ('attachedfiledecrementsize', 'DELETE', 'attachedfiles', 'attachedfiledecrementsizefunc'),
            ('insertedchange', 'INSERT', 'changes', 'insertedchangefunc'),
            ('countresourcestracker', 'INSERT OR DELETE', 'resources', 'countresourcestrackerfunc')
        ) AS trigger (name, event, relation, function)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgrelid = to_regclass(trigger.relation) AND tgname = trigger.name)
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %I FOR EACH ROW EXECUTE FUNCTION %I()',
                       wanted.name, wanted.event, wanted.relation, wanted.function);
    END LOOP;
END
$$;

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


-- Adding ----------------------------------------------------------------------------------------------------

-- Finds or creates an instance and its ancestors. Of an instance that exists, only its id is returned.
CREATE OR REPLACE FUNCTION createinstance(
    patient text, study text, series text, instance text,
    OUT isnewpatient bigint, OUT isnewstudy bigint, OUT isnewseries bigint, OUT isnewinstance bigint,
    OUT patientkey bigint, OUT studykey bigint, OUT serieskey bigint, OUT instancekey bigint)
LANGUAGE plpgsql AS $$
BEGIN
    isnewinstance := 0;
    SELECT internalid INTO instancekey FROM resources WHERE publicid = instance AND resourcetype = 3;
    IF FOUND THEN
        RETURN;
    END IF;

    SELECT internalid INTO patientkey FROM resources WHERE publicid = patient AND resourcetype = 0;
    SELECT internalid INTO studykey FROM resources WHERE publicid = study AND resourcetype = 1;
    SELECT internalid INTO serieskey FROM resources WHERE publicid = series AND resourcetype = 2;
    IF patientkey IS NULL AND studykey IS NOT NULL OR studykey IS NULL AND serieskey IS NOT NULL THEN
        RAISE EXCEPTION 'Broken invariant';
    END IF;
    isnewpatient := (patientkey IS NULL)::integer;
    isnewstudy := (studykey IS NULL)::integer;
    isnewseries := (serieskey IS NULL)::integer;
    isnewinstance := 1;

    IF patientkey IS NULL THEN
        INSERT INTO resources (resourcetype, publicid) VALUES (0, patient)
            RETURNING internalid INTO patientkey;
    END IF;
    IF studykey IS NULL THEN
        INSERT INTO resources (resourcetype, publicid, parentid) VALUES (1, study, patientkey)
            RETURNING internalid INTO studykey;
    END IF;
    IF serieskey IS NULL THEN
        INSERT INTO resources (resourcetype, publicid, parentid) VALUES (2, series, studykey)
            RETURNING internalid INTO serieskey;
    END IF;
    INSERT INTO resources (resourcetype, publicid, parentid) VALUES (3, instance, serieskey)
        RETURNING internalid INTO instancekey;

    -- To the end of the recycling order. A protected patient (no row) stays protected.
    UPDATE patientrecyclingorder SET seq = DEFAULT
        WHERE patientid = patientkey AND seq < (SELECT max(seq) FROM patientrecyclingorder);
END
$$;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (4, '1'), (6, '1'), (10, '1'), (11, '2'), (12, '1'), (13, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
