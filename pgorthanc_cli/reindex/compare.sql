-- What differs between the staged rows and the index. Parameters: the ids of all staged resources, and the types of
-- metadata that vanish if they are not staged.
-- Hashed, it takes a third less than by sorting both sides, which PostgreSQL would prefer: it has no statistics of
-- what was staged.
SET LOCAL enable_mergejoin = off;
INSERT INTO pg_temp.pgorthanc_changes (relation, id, key, change, value)
SELECT relation, COALESCE(staged.id, present.id), COALESCE(staged.key, present.key),
       CASE WHEN present.id IS NULL THEN 'missing' WHEN staged.id IS NULL THEN 'extra' ELSE 'different' END,
       staged.value
FROM (SELECT * FROM pg_temp.pgorthanc_rows) AS staged
FULL JOIN (
    SELECT 'maindicomtags' AS relation, id, taggroup::bigint * 65536 + tagelement AS key, value
    FROM index.maindicomtags WHERE id = ANY (%(ids)s)
    UNION ALL
    SELECT 'dicomidentifiers', id, taggroup::bigint * 65536 + tagelement, value
    FROM index.dicomidentifiers WHERE id = ANY (%(ids)s)
    UNION ALL
    SELECT 'metadata', id, type, value
    -- Not "type": before PostgreSQL 17 the index would be searched for each pair of an id and a type.
    FROM index.metadata WHERE id = ANY (%(ids)s) AND type + 0 IN (9, 10, 15, 16)
) AS present USING (id, key, relation)  -- sorted by the numbers first, which are compared faster than texts
WHERE staged.value IS DISTINCT FROM present.value
    AND (staged.id IS NOT NULL OR relation <> 'metadata' OR present.key = ANY (%(vanishing)s))
