-- The resources of a level that can be kept; of those with the same public id, the first by rank survives.
CREATE TEMP TABLE candidate AS
    SELECT r.internalId, r.publicId, parent.internalId AS parentId,
           row_number() OVER (
               PARTITION BY r.publicId
               ORDER BY coalesce(children.number, 0) DESC,
                   EXISTS (SELECT 1 FROM AttachedFiles file WHERE file.id = r.internalId AND file.fileType = 1) DESC,
                   r.internalId) AS rank
        FROM checked r
        LEFT JOIN moved ON moved.loser = r.parentId
        LEFT JOIN tree parent ON parent.internalId = coalesce(moved.survivor, r.parentId)
            AND parent.resourceType = :level - 1
        LEFT JOIN children ON children.id = r.internalId
        WHERE r.resourceType = :level AND r.usable AND (:level = 1 OR parent.internalId IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM tree taken WHERE taken.publicId = r.publicId)
