PRAGMA scratch.synchronous = OFF;
CREATE TABLE scratch.tree (internalId INTEGER PRIMARY KEY, resourceType, publicId, parentId);
CREATE INDEX scratch.treePublicId ON tree (publicId);
-- A resource that is merged into another one: its children and rows go to the survivor.
CREATE TABLE scratch.moved (loser INTEGER PRIMARY KEY, survivor);
CREATE TABLE scratch.children AS SELECT parentId AS id, count(*) AS number FROM Resources GROUP BY parentId;
CREATE INDEX scratch.childrenId ON children (id);
