-- Tags, and their identifiers, that a study has copied from its patient, and that differ from the patient's now.
-- Parameters: a range of ids; the patient's tags.
INSERT INTO pg_temp.pgorthanc_changes (relation, id, key, change, value)
SELECT found.relation, found.id, listed.tag, 'different', found.value
FROM unnest(%(tags)s::int8[]) AS listed (tag)
JOIN (
    SELECT 'maindicomtags' AS relation, s.id, s.taggroup, s.tagelement, p.value
    FROM index.resources r JOIN index.maindicomtags s ON s.id = r.internalid
    JOIN index.maindicomtags p ON p.id = r.parentid AND p.taggroup = s.taggroup AND p.tagelement = s.tagelement
    WHERE r.resourcetype = 1 AND r.internalid > %(first)s AND r.internalid <= %(last)s
        AND p.value IS DISTINCT FROM s.value
    UNION ALL
    SELECT 'dicomidentifiers', s.id, s.taggroup, s.tagelement, p.value
    FROM index.resources r JOIN index.dicomidentifiers s ON s.id = r.internalid
    JOIN index.dicomidentifiers p ON p.id = r.parentid AND p.taggroup = s.taggroup AND p.tagelement = s.tagelement
    WHERE r.resourcetype = 1 AND r.internalid > %(first)s AND r.internalid <= %(last)s
        AND p.value IS DISTINCT FROM s.value
) AS found ON found.taggroup = listed.tag / 65536 AND found.tagelement = listed.tag %% 65536
