-- What the index has, from the catalog: property 4 may be wrong.
SELECT metadata IS NOT NULL AS index,
       pg_catalog.to_regclass(prefix || 'patientrecyclingorder') IS NOT NULL AS recycling_table,
       pg_catalog.to_regproc(prefix || 'patientaddedorupdated') IS NOT NULL AS recycling_function,
       pg_catalog.to_regproc(prefix || 'deleteresource') IS NOT NULL AS delete_function,
       pg_catalog.to_regclass(prefix || 'invalidchildcounts') IS NOT NULL AS child_count_marks,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = pg_catalog.to_regclass(prefix || 'resources')
                   AND a.attname = 'childcount' AND NOT a.attisdropped) AS child_counts,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = metadata
                   AND a.attname = 'revision' AND NOT a.attisdropped) AS metadata_revisions,
       pg_catalog.to_regclass(prefix || 'uniquepublicid') IS NOT NULL AS unique_public_ids,
       pg_catalog.to_regclass(prefix || 'globalintegerschanges') IS NOT NULL AS statistics_deltas,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = pg_catalog.to_regclass(prefix || 'attachedfiles')
                   AND a.attname = 'customdata' AND NOT a.attisdropped) AS custom_data,
       pg_catalog.to_regclass(prefix || 'pgorthanc_kept_customdata') IS NOT NULL AS preserved_custom_data
FROM (SELECT pg_catalog.quote_ident(index_schema()) || '.') AS schema (prefix),
     pg_catalog.to_regclass(prefix || 'metadata') AS metadata
