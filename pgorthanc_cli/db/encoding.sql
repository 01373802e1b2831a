-- The setting of client_encoding for sessions of the role that owns the index, if it may log in, else of our own role.
WITH orthanc AS (
    SELECT coalesce((SELECT r.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
                     WHERE c.oid = pg_catalog.to_regclass(pg_catalog.quote_ident(index_schema()) || '.resources')
                         AND r.rolcanlogin),
                    (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user)) AS role,
           (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS base
)
SELECT pg_catalog.substr(setting, 17)
FROM orthanc, pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
WHERE s.setrole IN (0, orthanc.role) AND s.setdatabase IN (0, orthanc.base)
  AND setting LIKE 'client_encoding=%'
ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1
