-- The first resource that cannot be converted as it is, if there is one; the cheapest checks come first.
SELECT 'level or public id' FROM checked
    WHERE resourceType NOT IN (1, 2, 3, 4) OR resourceType IS NULL OR NOT usable
UNION ALL
SELECT 'parent' FROM Resources child LEFT JOIN Resources parent ON parent.internalId = child.parentId
    WHERE CASE child.resourceType WHEN 1 THEN child.parentId IS NOT NULL
               ELSE parent.resourceType IS NOT child.resourceType - 1 END
UNION ALL
SELECT 'duplicate' FROM Resources GROUP BY publicId HAVING count(*) > 1
UNION ALL
SELECT 'no children' FROM Resources parent WHERE resourceType < 4
    AND NOT EXISTS (SELECT 1 FROM Resources child WHERE child.parentId = parent.internalId)
LIMIT 1
