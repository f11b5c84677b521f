"""Reading tables (CSV, TSV, Parquet, JSON lines) with errors that name file, row and column."""

from torchrnn.tools.tables.opening import open_table
from torchrnn.tools.tables.table import Table

__all__ = ["Table", "open_table"]
