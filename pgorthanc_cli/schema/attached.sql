-- What others attach to a table, and what changes the rows that its queries see. Parameters: the schema, twice.
SELECT pg_catalog.format('child %%s.%%s', t.relname, i.inhrelid::pg_catalog.regclass), 'inherits'
    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class t ON t.oid = i.inhparent
    WHERE t.relkind IN ('r', 'p') AND t.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)
UNION ALL
SELECT 'rowsecurity ' || relname, CASE WHEN relforcerowsecurity THEN 'FORCED' ELSE 'ENABLED' END
    FROM pg_catalog.pg_class
    WHERE relrowsecurity AND relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)
