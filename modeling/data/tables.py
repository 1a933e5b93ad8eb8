"""Read a CSV file as text: 007 stays 007."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from modeling.data.problems import DataError

MAX_TABLE_BYTES = 400_000_000  # the hashes of 2 million images
MAX_LINE = 10_000  # characters; pandas makes a column of every comma, so that one long line fills the memory


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file, which may be untrusted, with at least these columns; a blank cell is "".

    Raises:
        DataError: If it is not such a table.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"it is larger than {MAX_TABLE_BYTES // 10**6} MB")
        with path.open(encoding="utf-8-sig") as file:  # a name alone pandas would also download or unpack
            while line := file.readline(MAX_LINE):
                if len(line) == MAX_LINE:
                    raise ValueError(f"it has a line of {MAX_LINE} characters or more")
            file.seek(0)
            table = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False).rename(columns=str.strip)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as a table ({type(error).__name__}: {str(error)[:300]}).") from error
    if missing := [column for column in columns if column not in table]:
        has = ", ".join(table.columns[:12])
        raise DataError(f"{path} lacks {len(missing)} columns: {', '.join(missing)} (it has {has[:300]}).")
    return table.fillna("")
