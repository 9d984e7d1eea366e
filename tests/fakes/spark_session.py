"""A Spark session without Spark: its JVM can load only what it was given."""


class FakeSpark:
    """A session whose JVM can load only these classes."""

    def __init__(self, *classes: str, **conf: str) -> None:
        self._classes, self._conf = classes, conf
        self._jvm = self
        self.java = self.lang = self.Thread = self.Class = self
        self.sparkContext = self

    def currentThread(self) -> "FakeSpark":
        return self

    def getContextClassLoader(self) -> None:
        return None

    def forName(self, name: str, _initialize: bool, _loader: None) -> None:
        if name not in self._classes:
            raise LookupError(name)

    def getConf(self) -> dict[str, str]:
        return {name.replace("__", "."): value for name, value in self._conf.items()}
