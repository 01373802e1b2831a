-- A patient without a row in the recycling order is protected. If duplicates disagree, the protection counts: losing it
-- could cost the patient's files. Otherwise the latest position is that of the last use.
CREATE TEMPORARY TABLE pgorthanc_patients ON COMMIT DROP AS
SELECT survivor, patient, publicid, bool_or(ranks.seq IS NULL) OVER same AS isprotected,
       bool_or(ranks.seq IS NOT NULL) OVER same AS isordered, max(ranks.seq) OVER same AS seq
    FROM (SELECT survivor, loser AS patient, publicid FROM pg_temp.pgorthanc_merge WHERE resourcetype = 0
          UNION SELECT survivor, survivor, publicid FROM pg_temp.pgorthanc_merge WHERE resourcetype = 0) one
    LEFT JOIN (SELECT patientid, max(seq) AS seq FROM patientrecyclingorder GROUP BY patientid) ranks
        ON ranks.patientid = patient
    WINDOW same AS (PARTITION BY survivor)
