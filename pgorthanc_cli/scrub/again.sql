-- Attachments by id, type and UUID, as they are now, with their resource and their study.
SELECT a.uuid, a.id, a.filetype, a.uncompressedsize, a.uncompressedhash, a.compressedsize, a.compressedhash,
       a.compressiontype, /* customdata */ NULL, 0, NULL::int8, '',
       CASE WHEN r.resourcetype = 3 THEN r.publicid END,
       r.resourcetype, r.publicid,
       CASE r.resourcetype WHEN 1 THEN r.publicid WHEN 2 THEN parent.publicid WHEN 3 THEN grandparent.publicid END
FROM unnest(%s::int8[], %s::int4[], %s::text[]) AS asked (id, filetype, uuid)
JOIN index.attachedfiles a ON a.id = asked.id AND a.filetype = asked.filetype AND a.uuid = asked.uuid
JOIN index.resources r ON r.internalid = a.id
LEFT JOIN index.resources parent ON parent.internalid = r.parentid
LEFT JOIN index.resources grandparent ON grandparent.internalid = parent.parentid
