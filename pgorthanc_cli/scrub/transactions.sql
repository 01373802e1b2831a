-- Open transactions of other client sessions in this database that are not our own commands, which only read.
SELECT DISTINCT l.virtualtransaction
FROM pg_locks l
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.granted
    AND a.datname = current_database()
    AND l.pid <> pg_backend_pid()
    -- Writes no rows of Orthanc, and may take hours.
    AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
    AND a.application_name NOT LIKE 'pgorthanc verify%'
UNION
SELECT 'prepared ' || p.gid FROM pg_prepared_xacts p WHERE p.database = current_database()
