-- A sound index: every resource is kept, and none is merged into another one.
CREATE TEMP VIEW tree AS SELECT internalId, resourceType, publicId, parentId FROM main.Resources;
CREATE TEMP TABLE moved (loser INTEGER PRIMARY KEY, survivor);
