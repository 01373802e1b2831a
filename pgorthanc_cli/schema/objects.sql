-- The objects of a schema that belong to no extension, each with its definition. Parameters: the schema, twice.
--
-- Where pk stands in globalintegerschanges and invalidchildcounts depends on the path that led to revision 10, and
-- nothing may address these tables by position; so it counts as the first column.
WITH ours AS (
    SELECT * FROM pg_class c WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT 'table ' || relname,
       CASE relkind WHEN 'p' THEN 'partitioned ' ELSE '' END
       || CASE relpersistence WHEN 'u' THEN 'unlogged' ELSE 'permanent' END
    FROM ours WHERE relkind IN ('r', 'p')
UNION ALL
SELECT format('column %%s.%%s', t.relname, a.attname),
       concat_ws(' ', row_number() OVER (PARTITION BY t.oid ORDER BY a.attname <> 'pk', a.attnum),
           format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
           'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
           CASE WHEN a.attidentity <> '' THEN 'IDENTITY' END, CASE WHEN a.attgenerated <> '' THEN 'GENERATED' END)
    FROM ours t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE t.relkind IN ('r', 'p')
UNION ALL
SELECT format('constraint %%s.%%s', t.relname, c.conname), pg_get_constraintdef(c.oid)
    FROM pg_constraint c JOIN ours t ON t.oid = c.conrelid WHERE c.contype IN ('p', 'u', 'f', 'c', 'x')
UNION ALL
SELECT 'index ' || c.relname,
       pg_get_indexdef(i.indexrelid, 0, true) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
    FROM pg_index i JOIN ours c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'sequence ' || c.relname,
       concat_ws(' ', format_type(s.seqtypid, NULL), 'START', s.seqstart, 'INCREMENT', s.seqincrement,
           'MIN', s.seqmin, 'MAX', s.seqmax, CASE WHEN s.seqcycle THEN 'CYCLE' END,
           'OWNED BY ' || (SELECT format('%%s.%%s', t.relname, a.attname) FROM pg_depend d
               JOIN pg_class t ON t.oid = d.refobjid
               JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
               WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
    FROM pg_sequence s JOIN ours c ON c.oid = s.seqrelid
UNION ALL
SELECT format('trigger %%s.%%s', t.relname, g.tgname),
       pg_get_triggerdef(g.oid, true) || CASE g.tgenabled WHEN 'O' THEN '' ELSE ' ENABLED ' || g.tgenabled::text END
    FROM pg_trigger g JOIN ours t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal
UNION ALL
SELECT format('rule %%s.%%s', t.relname, r.rulename),
       pg_get_ruledef(r.oid, true) || CASE r.ev_enabled WHEN 'O' THEN '' ELSE ' ENABLED ' || r.ev_enabled::text END
    FROM pg_rewrite r JOIN ours t ON t.oid = r.ev_class WHERE t.relkind IN ('r', 'p')
UNION ALL
SELECT format('function %%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
       concat_ws(' ', p.prokind, 'RETURNS ' || pg_get_function_result(p.oid), l.lanname, p.provolatile,
           CASE WHEN p.proisstrict THEN 'STRICT' END, CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' END, p.proconfig)
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
