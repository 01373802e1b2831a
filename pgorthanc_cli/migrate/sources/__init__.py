"""The databases that can be converted, one package for each: see `migrate.source`."""
