-- The rows as they should be, for one session; each transaction stages one batch.
CREATE TEMPORARY TABLE IF NOT EXISTS pgorthanc_resources (
    id bigint PRIMARY KEY, level integer NOT NULL
) ON COMMIT DELETE ROWS;
-- relation: maindicomtags, dicomidentifiers, metadata. key: the tag as one number, or the type of metadata.
CREATE TEMPORARY TABLE IF NOT EXISTS pgorthanc_rows (
    relation text NOT NULL, id bigint NOT NULL, key bigint NOT NULL, value text NOT NULL
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS pgorthanc_changes (
    relation text NOT NULL, id bigint NOT NULL, key bigint NOT NULL, change text NOT NULL, value text
) ON COMMIT DELETE ROWS
