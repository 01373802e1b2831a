-- Which row stays: the one with most below it, as then the fewest rows change; among instances one that has its DICOM
-- file; then the oldest one. UNION, not UNION ALL: a damaged tree may have a circle.
CREATE TEMPORARY TABLE pgorthanc_merge ON COMMIT DROP AS
WITH RECURSIVE repeated AS (
    SELECT internalid, publicid, resourcetype FROM resources
        WHERE publicid IN (SELECT publicid FROM resources GROUP BY publicid HAVING count(*) > 1)
), tree (root, id) AS (
    SELECT internalid, internalid FROM repeated
    UNION
    SELECT root, child.internalid FROM tree JOIN resources child ON child.parentid = tree.id
), ranked AS (
    SELECT repeated.*, row_number() OVER (
            PARTITION BY publicid
            ORDER BY size.number DESC, (dicom.id IS NULL), internalid) AS place
        FROM repeated
        JOIN (SELECT root, count(*) AS number FROM tree GROUP BY root) size ON size.root = internalid
        LEFT JOIN attachedfiles dicom ON dicom.id = internalid AND dicom.filetype = 1
)
SELECT loser.internalid AS loser, survivor.internalid AS survivor, publicid, loser.resourcetype, loser.place
    FROM ranked loser JOIN ranked survivor USING (publicid) WHERE loser.place > 1 AND survivor.place = 1
