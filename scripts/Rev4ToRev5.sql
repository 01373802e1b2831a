-- From revision 4 (PostgreSQL plugin 7.2) to revision 5 (plugin 8.0).
--
-- Brings back what Rev5ToRev4.sql kept aside: the data of storage plugins about an attachment, the key-value
-- stores and the queues.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev4ToRev5.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 5.


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
LOCK TABLE attachedfiles
    IN SHARE ROW EXCLUSIVE MODE;


-- Attachments: data of storage plugins ----------------------------------------------------------------------

ALTER TABLE attachedfiles ADD COLUMN customdata bytea;

-- What Rev5ToRev4.sql kept aside, for the attachments that are still the same file.
CREATE TABLE IF NOT EXISTS pgorthanc_kept_customdata (
    id bigint,
    filetype integer,
    uuid varchar(64) NOT NULL,
    customdata bytea NOT NULL,
    PRIMARY KEY (id, filetype)
);
UPDATE attachedfiles SET customdata = kept.customdata
    FROM pgorthanc_kept_customdata kept
    WHERE kept.id = attachedfiles.id AND kept.filetype = attachedfiles.filetype
        AND kept.uuid = attachedfiles.uuid;
DROP TABLE pgorthanc_kept_customdata;

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


-- Key-value stores and queues -------------------------------------------------------------------------------

-- Those that Rev5ToRev4.sql kept aside get their names back.
DO $$
DECLARE
    relation record;
BEGIN
    FOR relation IN
        WITH kept AS (
            SELECT to_regclass('pgorthanc_kept_keyvaluestores') AS id
            UNION ALL SELECT to_regclass('pgorthanc_kept_queues')
        )
        SELECT oid::regclass AS id, relname AS name FROM pg_class
            WHERE oid IN (SELECT id FROM kept
                          UNION ALL SELECT indexrelid FROM pg_index JOIN kept ON indrelid = id
                          UNION ALL SELECT objid FROM pg_depend JOIN kept ON refobjid = id
                                        WHERE classid = 'pg_class'::regclass AND deptype = 'a')
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME TO %I', relation.id,
                       replace(relation.name, 'pgorthanc_kept_', ''));
    END LOOP;
END
$$;

CREATE TABLE IF NOT EXISTS keyvaluestores (
    storeid text,
    key text,
    value bytea NOT NULL,
    PRIMARY KEY (storeid, key)
);

CREATE TABLE IF NOT EXISTS queues (
    id bigserial PRIMARY KEY,
    queueid text NOT NULL,
    value bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS queuesindex ON queues (queueid, id);


-- What older scripts may have left behind -------------------------------------------------------------------

DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);
DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DROP INDEX IF EXISTS invalidchildcountsid;
DELETE FROM globalintegers WHERE key = 7;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '5' WHERE property = 4;
