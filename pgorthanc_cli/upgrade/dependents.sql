-- Objects that PostgreSQL does not drop along with a table, column or function of the index. A view depends through
-- its rule, and what depends on the row type of a table depends on the table.
WITH gone AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass AS class, t.oid, 0 AS part, 'table ' || t.relname AS name
        FROM pg_catalog.pg_class t WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
            AND t.relname = ANY (%(tables)s)
    UNION ALL
    SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.reltype, 0, 'the row type of table ' || t.relname
        FROM pg_catalog.pg_class t WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
            AND t.relname = ANY (%(tables)s)
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, t.oid, a.attnum, 'column ' || t.relname || '.' || a.attname
        FROM pg_catalog.pg_class t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid
        WHERE t.relnamespace = %(schema)s::pg_catalog.regnamespace
            AND (t.relname = ANY (%(tables)s) OR t.relname || '.' || a.attname = ANY (%(columns)s))
    UNION ALL
    SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 0, 'function ' || p.proname
        FROM pg_catalog.pg_proc p WHERE p.pronamespace = %(schema)s::pg_catalog.regnamespace
            AND pg_catalog.format('%%s(%%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
                = ANY (%(functions)s)
)
SELECT DISTINCT CASE WHEN v.relkind = 'm' THEN 'materialized view ' || v.oid::pg_catalog.regclass
                     WHEN v.relkind = 'v' THEN 'view ' || v.oid::pg_catalog.regclass
                     ELSE pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) END, gone.name
    FROM gone JOIN pg_catalog.pg_depend d
        ON d.refclassid = gone.class AND d.refobjid = gone.oid AND d.refobjsubid = gone.part AND d.deptype = 'n'
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        AND r.oid = d.objid
    LEFT JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
    LEFT JOIN pg_catalog.pg_constraint k
        ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid
    LEFT JOIN pg_catalog.pg_trigger g
        ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = d.objid
    LEFT JOIN pg_catalog.pg_class o ON o.oid = coalesce(k.conrelid, g.tgrelid, v.oid)
    WHERE NOT (o.relnamespace IS NOT DISTINCT FROM %(schema)s::pg_catalog.regnamespace
        AND o.relname = ANY (%(known)s))
    ORDER BY 1, 2
