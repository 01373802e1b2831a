-- Objects that would run with the rights of a session whose search_path is the schema of an index, and that belong to
-- a role which cannot become the session's role anyway. Columns: kind, name, owner, statement that removes it.
-- Arguments: the schema; the plugin's functions by name, and with their arguments (signatures); the names of its
-- tables and sequences (relations).
-- An extension's member has a dependency 'e'. pg_has_role with MEMBER: the owner can become the role of this session.
WITH place AS (
    SELECT n.oid, n.nspname FROM pg_namespace n WHERE n.nspname = %(schema)s
), me AS (
    SELECT r.oid FROM pg_roles r WHERE r.rolname = session_user
), index_owner AS (
    SELECT c.relowner AS oid FROM pg_class c JOIN place ON c.relnamespace = place.oid
        WHERE c.relname = 'resources' AND c.relkind IN ('r', 'p')
), planted AS (
    SELECT 1 AS turn, 'cast' AS kind, p.proowner AS owner,
           format('%%s AS %%s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS name,
           format('(%%s AS %%s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS identity,
           false AS needed
        FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc
        JOIN pg_type source ON source.oid = c.castsource JOIN pg_type target ON target.oid = c.casttarget
        WHERE p.pronamespace <> 'pg_catalog'::regnamespace
            AND source.typnamespace = 'pg_catalog'::regnamespace
            AND target.typnamespace = 'pg_catalog'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT 2, 'trigger', p.proowner, format('%%s on %%s', t.tgname, c.relname),
           format('%%I ON %%I.%%I', t.tgname, place.nspname, c.relname), false
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN place ON place.oid = c.relnamespace
        JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND c.relname = ANY (%(relations)s)
            AND p.proowner IS DISTINCT FROM (SELECT oid FROM index_owner)
    UNION ALL
    SELECT 3, 'operator', o.oprowner,
           format('%%s (%%s, %%s)', o.oprname,
               CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
               CASE o.oprright WHEN 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END),
           format('%%I.%%s (%%s, %%s)', place.nspname, o.oprname,
               CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
               CASE o.oprright WHEN 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END), false
        FROM pg_operator o JOIN place ON place.oid = o.oprnamespace
        WHERE EXISTS (SELECT FROM pg_operator own
                WHERE own.oprname = o.oprname AND own.oprnamespace = 'pg_catalog'::regnamespace)
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e')
    UNION ALL
    SELECT CASE p.prokind WHEN 'a' THEN 4 ELSE 5 END,
           CASE p.prokind WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' ELSE 'function' END, p.proowner,
           format('%%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
           format('%%I.%%I(%%s)', place.nspname, p.proname,
               CASE WHEN p.prokind = 'a' AND p.pronargs = 0 THEN '*'
                    ELSE pg_get_function_identity_arguments(p.oid) END),
           format('%%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)) = ANY (%(signatures)s)
        FROM pg_proc p JOIN place ON place.oid = p.pronamespace
        WHERE NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
            AND CASE WHEN p.proname = ANY (%(functions)s)
                     THEN p.proowner IS DISTINCT FROM (SELECT oid FROM index_owner)
                     ELSE EXISTS (SELECT FROM pg_proc own
                         WHERE own.proname = p.proname AND own.pronamespace = 'pg_catalog'::regnamespace) END
    UNION ALL
    SELECT 6, CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, t.typowner, t.typname,
           format('%%I.%%I', place.nspname, t.typname), false
        FROM pg_type t JOIN place ON place.oid = t.typnamespace
        LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE coalesce(c.relkind, 'c') = 'c' AND t.typcategory <> 'A'
            AND EXISTS (SELECT FROM pg_type own
                WHERE own.typname = t.typname AND own.typnamespace = 'pg_catalog'::regnamespace)
            AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
    UNION ALL
    SELECT 7, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                  WHEN 'S' THEN 'sequence' ELSE 'table' END, c.relowner, c.relname,
           format('%%I.%%I', place.nspname, c.relname), c.relkind IN ('r', 'p', 'S')
        FROM pg_class c JOIN place ON place.oid = c.relnamespace
        WHERE c.relname = ANY (%(relations)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND c.relowner IS DISTINCT FROM (SELECT oid FROM index_owner)
            AND NOT EXISTS (SELECT FROM pg_depend d  -- a column's sequence follows its table
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                    AND c.relkind = 'S')
)
SELECT planted.kind::text, planted.name::text, pg_get_userbyid(planted.owner)::text,
       CASE WHEN planted.needed AND index_owner.oid IS NOT NULL
            THEN format('ALTER %%s %%s OWNER TO %%I;', upper(planted.kind), planted.identity,
                     pg_get_userbyid(index_owner.oid))
            ELSE format('DROP %%s %%s;', upper(planted.kind), planted.identity) END
    FROM planted CROSS JOIN me LEFT JOIN index_owner ON true
    WHERE NOT pg_has_role(planted.owner, me.oid, 'MEMBER')
    ORDER BY planted.turn, planted.name
