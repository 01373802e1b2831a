"""Options of Orthanc's configuration: types, defaults and history; the names of those that do not matter here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pgorthanc_cli import constants

SECTION = "PostgreSQL"
LATEST_PLUGIN = "10.3"
LEVELS = tuple(level.capitalize() for level in constants.LEVELS)
SECRET_KEYS = ("Password", "ConnectionUri")  # of the "PostgreSQL" section: never printed unmasked

_TYPE_NAMES = {str: "a string", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}


class Key(NamedTuple):
    """An option of Orthanc's configuration.

    Attributes:
        name: In its exact case: Orthanc tells `Host` from `host`.
        types: The JSON types that Orthanc accepts.
        default: What holds when the option is absent; None when absent has a meaning of its own.
        since: The first version of the PostgreSQL plugin (of Orthanc itself for root options) that reads it;
            empty: every version described here.
        changed: The plugin version that gave it the present default, and the default before.
        minimum: The least integer allowed.
        maximum: The greatest integer allowed.
        choices: The words allowed, returned as written here.
        exact: Whether the case of these words counts.
    """

    name: str
    types: tuple[type, ...]
    default: str | int | bool | None
    since: str = ""
    changed: tuple[str, str | int] | None = None
    minimum: int = 0
    maximum: int = 2**32 - 1
    choices: tuple[str, ...] = ()
    exact: bool = False

    def default_for(self, plugin: str) -> str | int | bool | None:
        """Return the default in a release of the plugin, such as `6.2`."""
        if self.changed and version(plugin) < version(self.changed[0]):
            return self.changed[1]
        return self.default


# The "PostgreSQL" section (SCHEMA.md 11).
POSTGRESQL_KEYS = {
    key.name: key
    for key in (
        Key("EnableIndex", (bool,), False),
        Key("EnableStorage", (bool,), False),
        Key("ConnectionUri", (str,), None),
        Key("Host", (str,), "localhost"),
        Key("Port", (int,), 5432, minimum=1, maximum=65534),
        Key("Database", (str,), ""),
        Key("Username", (str,), ""),
        Key("Password", (str,), ""),
        Key("EnableSsl", (bool,), False, since="3.0"),
        Key("Lock", (bool,), True),
        Key("MaximumConnectionRetries", (int,), 10, since="3.3"),
        Key("ConnectionRetryInterval", (int,), 5, since="3.3"),
        Key("IndexConnectionsCount", (int,), 50, since="4.0", changed=("7.0", 1), minimum=1),
        Key("TransactionMode", (str,), "ReadCommitted", since="6.0", changed=("7.0", "Serializable"),
            choices=("ReadCommitted", "Serializable")),
        Key("EnableVerboseLogs", (bool,), False, since="6.0"),
        Key("HousekeepingInterval", (int,), 1, since="7.0", minimum=1),
        Key("AllowInconsistentChildCounts", (bool,), False, since="7.2"),
        Key("UseDynamicConnectionPool", (bool,), False, since="9.0"),
        Key("Schema", (str,), "public", since="10.0"),
        Key("ApplicationName", (str,), "", since="10.0"),
    )
}  # fmt: skip
# The plugin ignores these beside ConnectionUri; without it, any of the first six describes a server.
DISCRETE_KEYS = ("Host", "Port", "Database", "Username", "Password", "EnableSsl", "ApplicationName")

# The root options that decide what an import writes, and where (INGEST.md 2, 5, 8, 11, 12).
ROOT_KEYS = {
    key.name: key
    for key in (
        Key("StorageDirectory", (str,), "OrthancStorage"),
        Key("IndexDirectory", (str,), None),
        Key("StorageCompression", (bool,), False),
        Key("StoreMD5ForAttachments", (bool,), True),
        Key("OverwriteInstances", (bool, str), False, choices=("Never", "Always", "IfChanged"), exact=True),
        Key("ExtraMainDicomTags", (dict,), None, since="1.11.0"),
        Key("DefaultEncoding", (str,), "Latin1", choices=constants.ENCODINGS),
        Key("StoreDicom", (bool,), True),
        Key("IngestTranscoding", (str,), None),
        Key("SyncStorageArea", (bool,), True),
        Key("DatabaseServerIdentifier", (str,), None),
        Key("ReadOnly", (bool,), False, since="1.12.5"),
        Key("Plugins", (list,), None),
    )
}


# Root options whose values decide whether Orthanc 1.13.0 starts; their meaning does not matter here.
STARTING_KEYS = {
    key.name: key
    for key in (
        Key("DicomParserThreadsCount", (int,), 2, since="1.13.0", minimum=1),
        Key("DicomParserMemoryCapacity", (int,), 256, since="1.13.0"),
        Key("DicomParserCacheSize", (int,), 256, since="1.13.0"),
        Key("TranscoderThreadsCount", (int,), 4, since="1.13.0", minimum=1),
        Key("TranscoderMemoryCapacity", (int,), 256, since="1.13.0"),
        Key("TranscoderCacheSize", (int,), 256, since="1.13.0"),
        Key("SequentialDicomReaderThreadsCount", (int,), None, since="1.13.0", minimum=1),
        Key("SequentialDicomReaderWindowSize", (int,), 4, since="1.13.0", minimum=1),
        Key("SequentialDicomReaderWindowCapacity", (int,), 128, since="1.13.0"),
        Key("MaximumRequestBodySizeMB", (int,), 8192, since="1.13.0"),
        Key("MaximumFileSizeInArchiveMB", (int,), 4096, since="1.13.0"),
        Key("PatientLevelEnabled", (bool,), True, since="1.13.0"),
    )
}

# All root options that `Orthanc --config=FILE` of 1.10.1, 1.12.7 and 1.13.0 writes or mentions.
_ROOT_NAMES = """
    AcceptedSopClasses AcceptedTransferSyntaxes AuthenticationEnabled BuiltinDecoderTranscoderOrder
    CaseSensitivePN CheckRevisions ConcurrentJobs DatabaseServerIdentifier DefaultEncoding
    DefaultPrivateCreator DeflatedTransferSyntaxAccepted DeidentifyLogs DeidentifyLogsDicomVersion DicomAet
    DicomAlwaysAllowEcho DicomAlwaysAllowFind DicomAlwaysAllowFindWorklist DicomAlwaysAllowGet
    DicomAlwaysAllowMove DicomAlwaysAllowStore DicomAssociationCloseDelay DicomCheckCalledAet
    DicomCheckModalityHost DicomDefaultRetrieveMethod DicomEchoChecksFind DicomLossyTranscodingQuality
    DicomModalities DicomModalitiesInDatabase DicomPort DicomScpTimeout DicomScuPreferredTransferSyntax
    DicomScuTimeout DicomServerEnabled DicomThreadsCount DicomTlsCertificate DicomTlsCiphersAccepted
    DicomTlsEnabled DicomTlsMinimumProtocolVersion DicomTlsPrivateKey DicomTlsRemoteCertificateRequired
    DicomTlsTrustedCertificates Dictionary ExecuteLuaEnabled ExternalDictionaries ExtraMainDicomTags
    H265TransferSyntaxAccepted HttpBindAddresses HttpCompressionEnabled HttpDescribeErrors HttpPort
    HttpProxy HttpRequestTimeout HttpServerEnabled HttpThreadsCount HttpTimeout HttpVerbose
    HttpsCACertificates HttpsVerifyPeers IndexDirectory IngestTranscoding IngestTranscodingOfCompressed
    IngestTranscodingOfUncompressed JobsEngineThreadsCount JobsHistorySize Jpeg2000TransferSyntaxAccepted
    JpegLosslessTransferSyntaxAccepted JpegTransferSyntaxAccepted JpipTransferSyntaxAccepted KeepAlive
    KeepAliveTimeout LimitFindInstances LimitFindResults LoadPrivateDictionary Locale LogExportedResources
    LuaHeartBeatPeriod LuaScripts MallocArenaMax MaximumConcurrentDcmtkTranscoders MaximumPatientCount
    MaximumPduLength MaximumStorageCacheSize MaximumStorageMode MaximumStorageSize MediaArchiveSize
    MetricsEnabled Mpeg2TransferSyntaxAccepted Mpeg4TransferSyntaxAccepted Name OrthancExplorerEnabled
    OrthancPeers OrthancPeersInDatabase OverwriteInstances Pkcs11 Plugins QueryRetrieveSize ReadOnly
    RegisteredUsers RejectedSopClasses RemoteAccessAllowed RestApiWriteToFileSystemEnabled
    RleTransferSyntaxAccepted SaveJobs SslCertificate SslCiphersAccepted SslEnabled
    SslMinimumProtocolVersion SslTrustedClientCertificates SslVerifyPeers StableAge StorageAccessOnFind
    StorageCommitmentReportsSize StorageCompression StorageDirectory StorageLoaderThreadsCount
    StorageMemoryCapacity StoreDicom StoreMD5ForAttachments StrictAetComparison SyncStorageArea
    SynchronousCMove SynchronousZipStream TcpNoDelay TemporaryDirectory TranscodeDicomProtocol
    UnknownSopClassAccepted UserContentType UserMetadata Warnings WebDavDeleteAllowed WebDavEnabled
    WebDavUploadAllowed ZipLoaderThreads ZipUseUtf8
"""
# Root options of official plugins, which have no section of their own.
_PLUGIN_NAMES = ("PythonScript", "PythonVerbose")
ROOT_NAMES = frozenset((*_ROOT_NAMES.split(), *STARTING_KEYS, *_PLUGIN_NAMES))
_LONGEST_NAME = 100


def version(text: str) -> tuple[int, ...]:
    """Return a release for comparisons: `10.3` -> (10, 3)."""
    return tuple(int(part) for part in text.split("."))


def validation_error(key: Key, value: object) -> str | None:
    """Return why Orthanc does not start with this value, or None; secrets are not repeated."""
    if type(value) not in key.types:  # exactly: JSON's true is no integer
        is_hidden = isinstance(value, (dict, list)) or key.name in SECRET_KEYS
        content = "" if is_hidden else f" ({value!r})"
        other = "null" if value is None else "a number with a fraction"
        actual = _TYPE_NAMES.get(type(value), other)
        expected = " or ".join(_TYPE_NAMES[kind] for kind in key.types)
        return f'"{key.name}" is {actual}{content}, wanted {expected}'
    if isinstance(value, int) and not isinstance(value, bool) and not key.minimum <= value <= key.maximum:
        return f'"{key.name}" is {value}, wanted {key.minimum} to {key.maximum}'
    fold = str if key.exact else str.lower
    if isinstance(value, str) and key.choices and fold(value) not in map(fold, key.choices):
        return f'"{key.name}" is "{value}", wanted one of {", ".join(key.choices)}'
    return None


def value_or_default(key: Key, values: Mapping[str, object], plugin: str) -> object:
    """Return the value of an option, or its default in that release of the plugin."""
    value = values.get(key.name, key.default_for(plugin))
    canonical = {choice.lower(): choice for choice in key.choices}
    return canonical.get(value.lower(), value) if isinstance(value, str) else value


def variable_of(*keys: str) -> str:
    """Return the container image's variable for an option: `ORTHANC__POSTGRESQL__ENABLE_INDEX`."""
    return "__".join(("ORTHANC", *map(_upper_snake, keys)))


def keys_of_variable(variable: str) -> tuple[str, ...]:
    """Return the keys that such a variable sets; the image turns unknown words into CamelCase, too."""
    parts = variable.split("__")[1:]
    inner = POSTGRESQL_KEYS if parts[:1] == [_upper_snake(SECTION)] else {}
    levels = [{_upper_snake(name): name for name in names} for names in ((SECTION, *ROOT_NAMES), inner)]
    keys = []
    for number, part in enumerate(parts):
        name = levels[number].get(part) if number < len(levels) else None
        keys.append(name or "".join(word.capitalize() for word in part.split("_")))
    return tuple(keys)


def _upper_snake(name: str) -> str:
    return "POSTGRESQL" if name == SECTION else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def closest_match(name: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Return the option that was probably meant; None for a name that is longer than any option."""
    if len(name) > _LONGEST_NAME:
        return None
    folded = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower().replace("_", ""), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None
