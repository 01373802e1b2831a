-- Attachments by area, file type and compression; those with customdata are read one by one.
SELECT s.uuid IS NOT NULL, a.filetype, a.compressiontype,
        count(*), sum(a.uncompressedsize)::int8, sum(a.compressedsize)::int8
    FROM (SELECT *, CASE WHEN filetype BETWEEN 1 AND 3 THEN filetype ELSE 0 END AS content_type
          FROM index.attachedfiles) a
    LEFT JOIN /* storagearea */ index.storagearea s ON s.uuid = a.uuid AND s.type = a.content_type
    WHERE /* customdata */ true
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
