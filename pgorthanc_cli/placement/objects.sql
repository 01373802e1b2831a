-- The large objects of the storage area: rows that no attachment names, and objects that the owner of the
-- table, who is Orthanc's role, may not delete.
SELECT
    (SELECT count(*) FROM index.storagearea s
        WHERE NOT EXISTS (SELECT FROM index.attachedfiles a WHERE a.uuid = s.uuid
            AND s.type = CASE WHEN a.filetype BETWEEN 1 AND 3 THEN a.filetype ELSE 0 END)),
    (SELECT count(*) FROM index.storagearea s JOIN pg_largeobject_metadata m ON m.oid = s.content
        WHERE NOT pg_has_role(t.relowner, m.lomowner, 'MEMBER')),
    pg_get_userbyid(t.relowner),
    pg_total_relation_size('pg_largeobject')
FROM pg_class t
WHERE t.oid = to_regclass(quote_ident(index_schema()) || '.storagearea')
