-- Prepared transactions that hold locks on tables of the index, or advisory locks of Orthanc: they are no sessions.
SELECT DISTINCT p.gid, p.owner::text, p.prepared
    FROM pg_catalog.pg_prepared_xacts p
    JOIN pg_catalog.pg_locks x
        ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
    JOIN pg_catalog.pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL
    LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
    LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
    LEFT JOIN pg_catalog.pg_class t ON t.oid = coalesce(i.indrelid, c.oid)
    WHERE p.database = pg_catalog.current_database() AND (
        (t.relnamespace = %s::pg_catalog.regnamespace AND t.relname = ANY (%s))
        OR (l.locktype = 'advisory' AND l.classid = 0 AND l.objid::bigint = ANY (%s))) ORDER BY 3, 1
