-- Each patient and its last number; NULL for a protected one, which is not in the recycling order. A patient that
-- others were merged into is protected if any of them is.
WITH member (id, patient) AS (
    SELECT internalId, internalId FROM tree WHERE resourceType = 1
    UNION ALL
    SELECT loser, survivor FROM moved JOIN tree ON internalId = survivor AND resourceType = 1)
SELECT patient, CASE WHEN min(seq IS NOT NULL) THEN max(seq) END
    FROM member LEFT JOIN (SELECT patientId, max(seq) AS seq FROM PatientRecyclingOrder GROUP BY patientId) numbered
        ON numbered.patientId = member.id
    GROUP BY patient ORDER BY 2, patient
