"""What an error from ClickHouse means for a batch: try again soon, or hold it until someone mends something.

Contract: pure. A held batch is still tried again, slowly, so an error on the wrong side of this line costs
time and never a row.
"""

from __future__ import annotations

from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import ConfigurationError, KubenetmonError

_TABLE_REMEDY = "run `kubenetmon schema apply`"
_GRANT_REMEDY = "grant this user INSERT and SELECT on the table"
_CREDENTIALS_REMEDY = "correct the username and password in clickhouse_credentials_dir"
_SETTING_REMEDY = "allow the settings that kubenetmon sends in the user's profile"
_ROWS_REMEDY = "compare the table with `kubenetmon schema print`"

# Codes: ClickHouse, src/Common/ErrorCodes.cpp.
_MENDED_BY_AN_OPERATOR: dict[int, str] = {
    8: _TABLE_REMEDY,  # THERE_IS_NO_COLUMN
    10: _TABLE_REMEDY,  # NOT_FOUND_COLUMN_IN_BLOCK
    16: _TABLE_REMEDY,  # NO_SUCH_COLUMN_IN_TABLE
    20: _ROWS_REMEDY,  # NUMBER_OF_COLUMNS_DOESNT_MATCH
    43: _ROWS_REMEDY,  # ILLEGAL_TYPE_OF_ARGUMENT
    44: _ROWS_REMEDY,  # ILLEGAL_COLUMN
    47: _TABLE_REMEDY,  # UNKNOWN_IDENTIFIER
    48: _ROWS_REMEDY,  # NOT_IMPLEMENTED
    49: _ROWS_REMEDY,  # LOGICAL_ERROR
    50: _ROWS_REMEDY,  # UNKNOWN_TYPE
    53: _ROWS_REMEDY,  # TYPE_MISMATCH
    60: _TABLE_REMEDY,  # UNKNOWN_TABLE
    62: _ROWS_REMEDY,  # SYNTAX_ERROR
    70: _ROWS_REMEDY,  # CANNOT_CONVERT_TYPE
    81: _TABLE_REMEDY,  # UNKNOWN_DATABASE
    115: _SETTING_REMEDY,  # UNKNOWN_SETTING
    117: _ROWS_REMEDY,  # INCORRECT_DATA
    164: _SETTING_REMEDY,  # READONLY
    192: _CREDENTIALS_REMEDY,  # UNKNOWN_USER
    193: _CREDENTIALS_REMEDY,  # WRONG_PASSWORD
    194: _CREDENTIALS_REMEDY,  # REQUIRED_PASSWORD
    195: "allow this server's address for the user",  # IP_ADDRESS_NOT_ALLOWED
    201: "raise the user's quota or wait for its interval to end",  # QUOTA_EXCEEDED
    218: _TABLE_REMEDY,  # TABLE_IS_DROPPED
    291: _GRANT_REMEDY,  # DATABASE_ACCESS_DENIED
    349: _ROWS_REMEDY,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    395: "mend or drop the materialized view that throws",  # FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
    452: _SETTING_REMEDY,  # SETTING_CONSTRAINT_VIOLATION
    469: _ROWS_REMEDY,  # VIOLATED_CONSTRAINT
    497: _GRANT_REMEDY,  # ACCESS_DENIED
    516: _CREDENTIALS_REMEDY,  # AUTHENTICATION_FAILED
    691: _ROWS_REMEDY,  # UNKNOWN_ELEMENT_OF_ENUM
}


_TOO_MANY_PARTS = 252


def may_have_stored(error: KubenetmonError, schema: TableSchema | None) -> bool:
    """Whether the rows of an insert that failed so may be in the table.

    What ClickHouse refuses it refuses before it has stored anything, but for a view, which throws when the
    table has its rows already; too many parts it finds before it takes the first row (ClickHouse,
    src/Storages/MergeTree/MergeTreeSink.cpp, onStart).
    """
    if not isinstance(error, ClickHouseError | ClickHouseUnreachableError) or error.before_rows:
        return False
    if schema is None or schema.has_views:
        return True
    return not needs_an_operator(error) and code(error) != _TOO_MANY_PARTS


def needs_an_operator(error: KubenetmonError) -> bool:
    """True when trying again soon cannot help."""
    if isinstance(error, ClickHouseError):
        return error.code in _MENDED_BY_AN_OPERATOR
    return isinstance(error, ConfigurationError)


def code(error: KubenetmonError) -> int:
    """ClickHouse's code of the error; 0 where ClickHouse did not speak."""
    return error.code if isinstance(error, ClickHouseError) else 0


def advice(error: KubenetmonError) -> str:
    """The error in one line with what to do about it."""
    if isinstance(error, ClickHouseError):
        remedy = _MENDED_BY_AN_OPERATOR.get(error.code)
        return f"{error}; {remedy}" if remedy else f"{error}; trying again"
    if isinstance(error, ClickHouseUnreachableError):
        return f"{error}; check clickhouse_endpoint and the network; trying again"
    return str(error)
