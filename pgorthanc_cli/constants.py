"""Facts that several rooms share. Imports nothing, so that `--help` stays fast."""

# libpq's sslmode, the weakest first.
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Those that make sure of the server's identity.
VERIFYING_SSLMODES = ("verify-ca", "verify-full")

# Levels of DICOM; the position is resourceType in Orthanc's tables.
LEVELS = ("patient", "study", "series", "instance")

# Values of DefaultEncoding in Orthanc's configuration.
ENCODINGS = (
    "Ascii", "Utf8", "Latin1", "Latin2", "Latin3", "Latin4", "Latin5", "Cyrillic", "Windows1251", "Arabic",
    "Greek", "Hebrew", "Thai", "Japanese", "Chinese", "JapaneseKanji", "Korean", "SimplifiedChinese",
)  # fmt: skip

# States of a check with the exit codes of the Nagios plugin API.
NAGIOS = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def file_path(uuid: str) -> str:
    """Return the path of an attachment's file below StorageDirectory (INGEST.md 12.1)."""
    return f"{uuid[:2]}/{uuid[2:4]}/{uuid}"
