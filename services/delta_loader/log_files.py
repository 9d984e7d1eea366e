"""The newest commits of a Delta table, read as the files they are, in whatever store Spark can read."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]  # it publishes none
from pyspark.sql import SparkSession

from shared.lake.layout import commit_file
from shared.lake.positions import Commit, commit_of

COMMITS_KEPT = 200
"""Commits never change, so the newest are kept in memory."""


class LogFiles:
    """The commits of one table, read as the files they are, each once. Two reads say "nothing new"."""

    def __init__(self, spark: SparkSession, table: str) -> None:
        self._spark = spark
        self._table = table
        self._newest = -1
        self._newest_text = ""
        self.lives = 0
        """Grows when what is known of the table is known no longer."""
        self._commits: OrderedDict[int, Commit] = OrderedDict()
        jvm: Any = spark._jvm
        self._hadoop: Any = spark._jsparkSession.sessionState().newHadoopConf()
        self._path = jvm.org.apache.hadoop.fs.Path
        self._read_text = jvm.org.apache.commons.io.IOUtils.toString

    def newest(self) -> int:
        """The table's current version; -1 when there is no table. Versions follow each other without a gap."""
        if self._newest < 0 or self._text(commit_file(self._table, self._newest)) != self._newest_text:
            self.forget()  # not yet looked for, or another table lies there now
            self._newest = self._first_guess()
            self._newest_text = "" if self._newest < 0 else self._text(commit_file(self._table, self._newest)) or ""
        while (text := self._text(commit_file(self._table, self._newest + 1))) is not None:
            self._newest, self._newest_text = self._newest + 1, text
            self._keep(self._newest, text)
        return self._newest

    def forget(self) -> None:
        self._newest = -1
        self.lives += 1
        self._commits.clear()

    def read(self, version: int) -> Commit | None:
        """``None``: not in the retained log."""
        known = self._commits.get(version)
        if known is not None:
            return known
        text = self._text(commit_file(self._table, version))
        if text is None:
            return None
        return self._keep(version, text)

    def _keep(self, version: int, text: str) -> Commit:
        commit = commit_of(version, _commit_info(text))
        self._commits[version] = commit
        while len(self._commits) > COMMITS_KEPT:
            self._commits.popitem(last=False)
        return commit

    def _first_guess(self) -> int:
        """A version that is there: the last checkpoint's if it says so, else found by doubling."""
        text = self._text(f"{self._table}/_delta_log/_last_checkpoint")
        low = json.loads(text).get("version", -1) if text else -1
        if low < 0 or not self._exists(low):
            low = -1
            if not self._exists(0):
                return self._listed()
        step = 1
        while self._exists(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exists(middle) else (low, middle)
        return low

    def _listed(self) -> int:
        """An old log has neither its first commit nor, where the hint is lost, a known one: list it."""
        folder = self._path(f"{self._table}/_delta_log")
        try:
            names = [status.getPath().getName() for status in folder.getFileSystem(self._hadoop).listStatus(folder)]
        except Py4JJavaError as error:
            if is_missing(error):
                return -1
            raise
        return max((int(name[:20]) for name in names if name[20:] == ".json" and name[:20].isdecimal()), default=-1)

    def _exists(self, version: int) -> bool:
        path = self._path(commit_file(self._table, version))
        return bool(path.getFileSystem(self._hadoop).exists(path))

    def _text(self, file: str) -> str | None:
        path = self._path(file)
        try:
            stream = path.getFileSystem(self._hadoop).open(path)
        except Py4JJavaError as error:
            if is_missing(error):
                return None
            raise
        try:
            return str(self._read_text(stream, "UTF-8"))
        finally:
            stream.close()


def is_missing(error: Py4JJavaError) -> bool:
    return str(error.java_exception.getClass().getName()) in (
        "java.io.FileNotFoundException",
        "java.nio.file.NoSuchFileException",
    )


def _commit_info(text: str) -> Mapping[str, Any]:
    """The ``commitInfo`` action of a commit; empty where a foreign writer left none."""
    for line in text.splitlines():
        if '"commitInfo"' in line:
            action = json.loads(line)
            if "commitInfo" in action:
                found: Mapping[str, Any] = action["commitInfo"]
                return found
    return {}
