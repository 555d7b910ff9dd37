"""The Registry's tables, as the newest migration leaves them.

Times are in microseconds since 1970, durations in microseconds.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# A model's name. SQLite, which does not enforce lengths, keeps the one its tables were made with.
_NAME = String(255).with_variant(String(128), "sqlite")

# One row. Every writer changes it first, so that there is one at a time, and no gap in revisions.
catalogue = Table(
    "catalogue",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("description", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("retry_policy", String(16), nullable=False),
    # Fields that are set, by name.
    Column("residency", JSON, nullable=False, server_default="{}"),
    Column("aliases", JSON, nullable=False),
    Column("arms", JSON, nullable=False),  # [[target, weight]]; empty: no policy
    Column("policy_revision", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("verdict", String(16), nullable=False),
    Column("source", Text, nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("probe", LargeBinary, nullable=True),  # null: none
    Column("config_digest", String(64), nullable=False),
    Column("auxiliary_digest", String(64), nullable=False),
    Column("artifact_bytes", BigInteger, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("ensemble", Boolean, nullable=False),
    Column("parts", JSON, nullable=False),  # [[model, written, chosen, source]]
    Column("declared_memory", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("artifact_problem", Text, nullable=False),
    Column("parts_problem", Text, nullable=False),
    Column("parts_waiting", Text, nullable=False, server_default=""),
    Column("incomplete", Text, nullable=False, server_default=""),
    Column("completion_problem", Text, nullable=False, server_default=""),
    Column("scanned", String(64), nullable=False, server_default=""),
    # Of the manifest in the store; empty: served in place.
    Column("digest", String(64), nullable=False, server_default="", index=True),
    # {source: [scheme, locator, revision], folder, who, at_us, about}; null: not known
    Column("provenance", JSON(none_as_null=True)),
    Column("created_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

# Who points at whom: a version at its parts' models, with number 0 a policy at its arms'.
uses = Table(
    "uses",
    metadata,
    Column("model", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("used", _NAME, primary_key=True),
    Index("uses_used", "used"),
)

# What creates have made, by their request id.
requests = Table(
    "requests",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("made", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("requests_created", "created_us"),
)

footprints = Table(
    "footprints",
    metadata,
    Column("model", _NAME, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("config_digest", String(64), nullable=False),
    Column("memory", JSON, nullable=False),
    Column("load_us", BigInteger, nullable=False),
    Column("uses", Float, nullable=False, server_default="0"),
    Column("used_us", BigInteger, nullable=False, server_default="0"),
    Column("failure", JSON(none_as_null=True)),  # of the last load, if it failed
    ForeignKeyConstraint(
        ["model", "number"], ["versions.model", "versions.number"], ondelete="CASCADE"
    ),
)

# Versions on their way from a source into the catalogue, and what has become of them.
imports = Table(
    "imports",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", _NAME, nullable=False),
    Column("source", JSON, nullable=False),  # [scheme, locator, revision]
    Column("folder", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("declared_memory", JSON, nullable=False),
    Column("pending", Boolean, nullable=False),
    Column("who", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("registered", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("files", Integer, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
)

# Sources that are looked at again and again.
source_watches = Table(
    "source_watches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", _NAME, nullable=False),
    Column("source", JSON, nullable=False),  # [scheme, locator, revision]
    Column("last_import", String(32), nullable=False),
    Column("declared_memory", JSON, nullable=False),
    Column("pending", Boolean, nullable=False),
    Column("who", Text, nullable=False),
    Column("problem", Text, nullable=False),
    Column("started_us", BigInteger, nullable=False),
)

# Files that have left the store's disk, and why.
departures = Table(
    "departures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("versions", JSON, nullable=False),  # [name]
    Column("freed", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)

# Model repositories that were imported.
repositories = Table(
    "repositories",
    metadata,
    Column("path", Text, primary_key=True),
    Column("problems", JSON, nullable=False),  # [[path, reason]], of the last import
)

# One row.
lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(128), nullable=False),
    Column("incarnation", String(128), nullable=False),
    Column("ttl_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("followers", JSON(none_as_null=True)),  # [router]; NULL if not all are known
)
