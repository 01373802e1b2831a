-- From revision 5 (PostgreSQL plugin 8.0) to revision 4 (plugin 7.2).
--
-- Kept aside, and brought back by Rev4ToRev5.sql: the data of storage plugins about an attachment, the
-- key-value stores and the queues. Files that a storage plugin finds only by such data cannot be read until
-- then.
--
-- No schema is named: the index is in the first one of search_path. PostgreSQL 12 or newer. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f Rev5ToRev4.sql
-- while no Orthanc works on the database. It fails as a whole, or leaves an index at revision 4.


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
LOCK TABLE attachedfiles, keyvaluestores, queues, globalintegers
    IN SHARE ROW EXCLUSIVE MODE;


-- Attachments: no data of storage plugins -------------------------------------------------------------------

-- Kept aside with the file it belongs to: an attachment may be replaced meanwhile.
DO $$
BEGIN
    IF EXISTS (SELECT FROM attachedfiles WHERE customdata IS NOT NULL) THEN
        CREATE TABLE IF NOT EXISTS pgorthanc_kept_customdata (
            id bigint,
            filetype integer,
            uuid varchar(64) NOT NULL,
            customdata bytea NOT NULL,
            PRIMARY KEY (id, filetype)
        );
        INSERT INTO pgorthanc_kept_customdata (id, filetype, uuid, customdata)
            SELECT id, filetype, uuid, customdata FROM attachedfiles WHERE customdata IS NOT NULL
            ON CONFLICT (id, filetype) DO UPDATE SET uuid = EXCLUDED.uuid, customdata = EXCLUDED.customdata;
    END IF;
END
$$;

ALTER TABLE attachedfiles DROP COLUMN customdata;

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

CREATE OR REPLACE FUNCTION attachedfiledeletedfunc() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deletedfiles (uuid, filetype, compressedsize, uncompressedsize, compressiontype,
                              uncompressedhash, compressedhash)
        VALUES (OLD.uuid, OLD.filetype, OLD.compressedsize, OLD.uncompressedsize, OLD.compressiontype,
                OLD.uncompressedhash, OLD.compressedhash);
    RETURN NULL;
END
$$;


-- Key-value stores and queues: kept aside, as they are ------------------------------------------------------

ALTER TABLE queues DROP COLUMN IF EXISTS reserveduntil;  -- left behind by an older script

-- The tables and what belongs to them are only renamed, whatever their size. The queues keep their sequence:
-- no number is given twice.
DO $$
DECLARE
    relation record;
BEGIN
    -- An earlier downgrade may have kept some, and the plugin has upgraded the index since.
    IF to_regclass('pgorthanc_kept_keyvaluestores') IS NOT NULL THEN
        INSERT INTO pgorthanc_kept_keyvaluestores (storeid, key, value)
            SELECT storeid, key, value FROM keyvaluestores
            ON CONFLICT (storeid, key) DO UPDATE SET value = EXCLUDED.value;
        TRUNCATE keyvaluestores;
    END IF;
    IF to_regclass('pgorthanc_kept_queues') IS NOT NULL THEN
        INSERT INTO pgorthanc_kept_queues (queueid, value) SELECT queueid, value FROM queues ORDER BY id;
        TRUNCATE queues RESTART IDENTITY;
    END IF;

    FOR relation IN
        WITH kept AS (
            SELECT to_regclass('keyvaluestores') AS id WHERE EXISTS (SELECT FROM keyvaluestores)
            UNION ALL
            SELECT to_regclass('queues') WHERE (SELECT is_called FROM queues_id_seq)
        )
        SELECT oid::regclass AS id, relname AS name FROM pg_class
            WHERE oid IN (SELECT id FROM kept
                          UNION ALL SELECT indexrelid FROM pg_index JOIN kept ON indrelid = id
                          UNION ALL SELECT objid FROM pg_depend JOIN kept ON refobjid = id
                                        WHERE classid = 'pg_class'::regclass AND deptype = 'a')
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME TO %I', relation.id, 'pgorthanc_kept_' || relation.name);
    END LOOP;
END
$$;

DROP TABLE IF EXISTS keyvaluestores, queues;


-- What older scripts may have left behind -------------------------------------------------------------------

DROP FUNCTION IF EXISTS patientaddedorupdated(bigint);
DROP FUNCTION IF EXISTS countresourcestrackerfunc();
DELETE FROM globalintegers WHERE key = 7;
DROP INDEX IF EXISTS invalidchildcountsid;


-- What the plugin looks for, and the revision, last --------------------------------------------------------

INSERT INTO globalproperties (property, value)
    VALUES (6, '1'), (10, '1'), (11, '3'), (12, '1'), (13, '1'), (14, '1')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;
UPDATE globalproperties SET value = '4' WHERE property = 4;
