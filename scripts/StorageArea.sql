-- The PostgreSQL storage area of Orthanc: one large object per file. It is the same for all plugins, and has no
-- revision.
--
-- No schema is named: everything goes to the first one of search_path. Run it with
--   psql -1 -v ON_ERROR_STOP=1 -f StorageArea.sql

DO $$
DECLARE
    columns text;
BEGIN
    SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) INTO columns
        FROM pg_attribute
        WHERE attrelid = to_regclass(quote_ident(current_schema()) || '.storagearea')
            AND attnum > 0 AND NOT attisdropped;
    IF columns <> 'uuid character varying, content oid, type integer' THEN
        RAISE EXCEPTION 'schema % holds a table storagearea that is not the storage area of Orthanc',
            current_schema() USING DETAIL = 'Columns: ' || columns, HINT = 'Use another schema.';
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS storagearea (
    uuid varchar PRIMARY KEY,
    content oid NOT NULL,
    type integer NOT NULL
);

-- The large object goes with its row (TRUNCATE would leave it behind).
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_rules
            WHERE schemaname = current_schema() AND tablename = 'storagearea' AND rulename = 'storageareadelete')
    THEN
        CREATE RULE storageareadelete AS ON DELETE TO storagearea DO SELECT lo_unlink(OLD.content);
    END IF;
END
$$;
