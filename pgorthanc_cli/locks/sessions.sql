-- What a role may not see of others (client_addr, backend_type, ...) is NULL; background workers have no role.
SELECT pid, application_name, usename, host(client_addr), backend_start, state,
       CASE WHEN state LIKE 'idle%' THEN state_change END,
       CASE WHEN backend_type IS NOT NULL AND state <> 'disabled' THEN query END, coalesce(locks, '{}')
    FROM pg_stat_activity LEFT JOIN (
        SELECT pid, array_agg(objid::bigint ORDER BY objid::bigint) AS locks FROM pg_locks
            WHERE locktype = 'advisory' AND classid = 0 AND objsubid = 1 AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            GROUP BY pid
    ) held USING (pid)
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
    ORDER BY backend_start, pid
