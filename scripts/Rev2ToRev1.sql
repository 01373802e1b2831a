-- From revision 2 (PostgreSQL plugin 6.0 to 6.2) to revision 1 (plugin 5.0 and 5.1).
--
-- Nothing is lost.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev2ToRev1.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 1.


-- Refuse anything but revision 2 ----------------------------------------------------------------------------

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
        FROM (VALUES ('patientrecyclingorder.seq', true), ('globalintegerschanges.key', true),
                     ('resources.childcount', false), ('metadata.revision', true))
             AS layout (attribute, wanted)
        WHERE wanted <> EXISTS (
            SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(attribute, '.', 1))
                    AND attname = split_part(attribute, '.', 2) AND NOT attisdropped);
    IF recorded.version IS DISTINCT FROM '6' OR recorded.revision IS DISTINCT FROM '2'
            OR differs IS NOT NULL THEN
        RAISE EXCEPTION 'wanted an index of version 6 at revision 2, found in schema %: %', index_schema,
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
LOCK TABLE resources, attachedfiles, changes, patientrecyclingorder, globalintegers, globalintegerschanges
    IN SHARE ROW EXCLUSIVE MODE;


-- Counters: kept up to date at once, not by notes -----------------------------------------------------------

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

DROP TRIGGER incrementresourcestracker ON resources;
DROP TRIGGER decrementresourcestracker ON resources;
DROP FUNCTION incrementresourcestrackerfunc();
DROP FUNCTION decrementresourcestrackerfunc();
DROP FUNCTION updatestatistics();
DROP FUNCTION updatesinglestatistic(integer);
DROP TABLE globalintegerschanges;

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

CREATE TRIGGER countresourcestracker AFTER INSERT OR DELETE ON resources
    FOR EACH ROW EXECUTE FUNCTION countresourcestrackerfunc();


-- The recycling order: numbered by its sequence, which goes on where counter 7 stands -----------------------

DO $$
BEGIN
    PERFORM setval('patientrecyclingorder_seq_seq', last.seq)
        FROM (SELECT greatest((SELECT max(seq) FROM patientrecyclingorder),
                              (SELECT value FROM globalintegers WHERE key = 7)) AS seq) last
        WHERE last.seq > 0;
END
$$;
DELETE FROM globalintegers WHERE key = 7;

ALTER TABLE patientrecyclingorder DROP CONSTRAINT uniquepatientid;

DROP FUNCTION patientaddedorupdated(bigint, bigint);

CREATE OR REPLACE FUNCTION patientaddedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.resourcetype = 0 THEN
        INSERT INTO patientrecyclingorder (patientid) VALUES (NEW.internalid);
    END IF;
    RETURN NULL;
END
$$;


-- Adding: no identifier is unique ---------------------------------------------------------------------------

ALTER TABLE resources DROP CONSTRAINT uniquepublicid;

DROP FUNCTION insertorupdatemetadata(bigint[], integer[], text[], integer[]);
DROP FUNCTION createinstance(text, text, text, text);

-- Finds or creates an instance and its ancestors. Of an instance that exists, only its id is returned.
CREATE FUNCTION createinstance(
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


-- Deleting: what is removed is left for Orthanc in three tables ---------------------------------------------

DROP FUNCTION deleteresource(bigint);
DROP FUNCTION createdeletedfilestemporarytable();

CREATE TABLE deletedfiles (
    uuid varchar(64) NOT NULL,
    filetype integer,
    compressedsize bigint,
    uncompressedsize bigint,
    compressiontype integer,
    uncompressedhash varchar(40),
    compressedhash varchar(40)
);
CREATE TABLE deletedresources (resourcetype integer NOT NULL, publicid varchar(64) NOT NULL);
CREATE TABLE remainingancestor (resourcetype integer NOT NULL, publicid varchar(64) NOT NULL);

CREATE OR REPLACE FUNCTION resourcedeletedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deletedresources (resourcetype, publicid) VALUES (OLD.resourcetype, OLD.publicid);
    -- Locked before anybody looks for its children: without the lock, two sessions that delete the last
    -- instances of two sibling series would each see the other's series, and leave the study childless.
    PERFORM FROM resources WHERE internalid = OLD.parentid FOR UPDATE;
    IF EXISTS (SELECT FROM resources WHERE parentid = OLD.parentid) THEN
        INSERT INTO remainingancestor (resourcetype, publicid)
            SELECT resourcetype, publicid FROM resources WHERE internalid = OLD.parentid;
    ELSE
        DELETE FROM resources WHERE internalid = OLD.parentid;
    END IF;
    RETURN NULL;
END
$$;


-- What older scripts may have left behind -------------------------------------------------------------------

CREATE INDEX IF NOT EXISTS childrenindex ON resources (parentid);
DROP INDEX IF EXISTS childrenindex2, dicomidentifiersindex3;
DROP TABLE IF EXISTS invalidchildcounts;
DROP FUNCTION IF EXISTS updateinvalidchildcounts();
DROP FUNCTION IF EXISTS computestatisticsreadonly(integer);
DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);


-- What the plugin looks for, and the revision, last --------------------------------------------------------

DELETE FROM globalproperties WHERE property = 14;
INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '2'), (12, '1'), (13, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '1' WHERE property = 4;
