-- This role, and the owner of a large object of the storage area that it may not read; no row if there is none.
-- The privileges of a large object are those of its owner, unless lomacl names others.
SELECT current_user, pg_get_userbyid(m.lomowner)
FROM index.storagearea s
JOIN pg_largeobject_metadata m ON m.oid = s.content
WHERE NOT current_setting('is_superuser')::boolean
    AND NOT current_setting('lo_compat_privileges')::boolean
    AND NOT pg_has_role(current_user, m.lomowner, 'USAGE')
    AND NOT EXISTS (
        SELECT FROM aclexplode(m.lomacl) granted
        WHERE granted.privilege_type = 'SELECT'
            AND CASE WHEN granted.grantee = 0 THEN true
                     ELSE pg_has_role(current_user, granted.grantee, 'USAGE') END)
LIMIT 1
