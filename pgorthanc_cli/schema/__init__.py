"""The versioned schema of the index: catalogs, scripts, creation, status, verification, repair."""
