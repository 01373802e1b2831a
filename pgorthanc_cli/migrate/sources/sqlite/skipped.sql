SELECT r.publicId, CASE
        WHEN r.resourceType IS NULL OR r.resourceType NOT IN (1, 2, 3, 4) THEN 'its level is none'
        WHEN NOT r.usable THEN 'its public id is unusable'
        WHEN EXISTS (SELECT 1 FROM tree taken WHERE taken.publicId = r.publicId)
            THEN 'another level has its public id'
        WHEN r.resourceType > 1 AND parent.internalId IS NULL THEN 'its parent does not exist'
        WHEN r.resourceType > 1 AND parent.resourceType IS NOT r.resourceType - 1
            THEN 'its parent is not of the level above'
        WHEN r.resourceType > 1 AND NOT EXISTS (SELECT 1 FROM tree above WHERE above.internalId = r.parentId)
            AND NOT EXISTS (SELECT 1 FROM moved WHERE loser = r.parentId) THEN 'what it belongs to is skipped'
        ELSE 'nothing is below it' END
    FROM checked r LEFT JOIN Resources parent ON parent.internalId = r.parentId
    WHERE r.internalId NOT IN (SELECT internalId FROM tree) AND r.internalId NOT IN (SELECT loser FROM moved)
    ORDER BY r.resourceType, r.internalId
