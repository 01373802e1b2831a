-- Identifiers that are not the normalised value of their tag. Parameters: a range of ids; levels and tags.
-- A tag without a row says nothing: early releases of Orthanc did not copy the patient's tags to the study.
INSERT INTO pg_temp.pgorthanc_changes (relation, id, key, change, value)
SELECT 'dicomidentifiers', m.id, listed.tag, CASE WHEN d.id IS NULL THEN 'missing' ELSE 'different' END, m.normalized
FROM unnest(%(levels)s::int4[], %(tags)s::int8[]) AS listed (level, tag)
JOIN (
    SELECT r.resourcetype, t.id, t.taggroup, t.tagelement,
           -- As Orthanc normalises: ASCII only, upper case, no wildcards. With "C" in the same way everywhere.
           btrim(upper(regexp_replace(translate(t.value, '%%_', '  ') COLLATE "C", '[^ -~]', '', 'g')), ' ')
               AS normalized
    FROM index.resources r JOIN index.maindicomtags t ON t.id = r.internalid
    WHERE r.internalid > %(first)s AND r.internalid <= %(last)s
) AS m ON m.resourcetype = listed.level AND m.taggroup = listed.tag / 65536 AND m.tagelement = listed.tag %% 65536
LEFT JOIN index.dicomidentifiers d ON d.id = m.id AND d.taggroup = m.taggroup AND d.tagelement = m.tagelement
WHERE d.id IS NULL OR d.value IS DISTINCT FROM m.normalized
