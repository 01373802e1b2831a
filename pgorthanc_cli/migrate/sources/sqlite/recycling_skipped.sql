-- Rows of the recycling order that are of no patient, or not the last one of theirs.
WITH numbered AS (
    SELECT seq, patientId, internalId AS patient
        FROM PatientRecyclingOrder LEFT JOIN moved ON loser = patientId
        LEFT JOIN tree ON internalId = coalesce(survivor, patientId) AND resourceType = 1)
SELECT seq, patient IS NOT NULL, (SELECT publicId FROM Resources WHERE internalId = patientId)
    FROM numbered WHERE patient IS NULL OR seq NOT IN (SELECT max(seq) FROM numbered GROUP BY patient)
    ORDER BY seq
