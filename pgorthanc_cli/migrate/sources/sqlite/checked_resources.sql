-- Orthanc writes public ids of printable ASCII only. The length in bytes differs where there is a NUL.
CREATE TEMP VIEW checked AS
    SELECT internalId, resourceType, publicId, parentId,
           typeof(publicId) = 'text' AND length(publicId) BETWEEN 1 AND 64
               AND length(publicId) = length(CAST(publicId AS BLOB)) AND NOT publicId GLOB '*[^ -~]*' AS usable
        FROM main.Resources;
