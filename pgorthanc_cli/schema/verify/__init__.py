"""Verify an index: differences from its revision, whether and why they matter, and their repair."""

from pgorthanc_cli.schema.verify.apply import repair, script
from pgorthanc_cli.schema.verify.compare import schema
from pgorthanc_cli.schema.verify.model import Finding, Fix, Phase, Repaired, SchemaReport, ordered

__all__ = ["Finding", "Fix", "Phase", "Repaired", "SchemaReport", "ordered", "repair", "schema", "script"]
