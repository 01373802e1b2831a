-- A digest of everything that planted.sql reads, except the memberships of roles: while it stays the same, nothing was
-- created or changed, and the expensive query need not run again.
SELECT concat_ws(' ',
    (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_proc
        WHERE pronamespace = place.oid),
    (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_operator
        WHERE oprnamespace = place.oid),
    (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_type
        WHERE typnamespace = place.oid),
    (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_class
        WHERE relnamespace = place.oid),
    -- Import disables and enables triggers in each transaction: xmin would differ.
    (SELECT md5(string_agg(format('%s %s %s %s', oid, tgrelid, tgfoid, tgname), ' ' ORDER BY oid)) FROM pg_trigger),
    (SELECT md5(string_agg(format('%s %s', oid, xmin), ' ' ORDER BY oid)) FROM pg_cast WHERE castfunc >= 16384))
FROM pg_namespace place WHERE place.nspname = index_schema()
