"""What stops one entity, in words, and what only makes it wait. Nothing of it stops another entity."""

from typing import Literal

from pyspark.errors import PySparkException

from services.delta_loader.history import HistoryContended
from services.delta_loader.links import LedgerBroken
from services.delta_loader.loader import Contended
from services.delta_loader.schema import Breaking
from services.delta_loader.tables import BatchTooOld, RowsMissing, RuleChanged
from services.delta_loader.transform import TransformRefused
from shared.events.contract import ContractError
from shared.raw.objects import NotOurs, StoreUnavailable
from shared.registry.client import RegistryError

Cause = Literal["raw", "schema", "breaking", "transform", "store", "spark"]
"""As in ``metrics.LAKE_WAIT_CAUSES``."""

FORESEEN = (
    *(BatchTooOld, Breaking, Contended, ContractError, HistoryContended, LedgerBroken, NotOurs, RegistryError),
    *(RowsMissing, RuleChanged, StoreUnavailable, TransformRefused),
)
"""Their messages say what to do; a stack trace says no more."""


def cause_of(error: BaseException) -> Cause:
    match error:
        case LedgerBroken() | NotOurs() | RowsMissing():
            return "raw"
        case RegistryError():
            return "schema"
        case Breaking() | ContractError() | RuleChanged():
            return "breaking"
        case TransformRefused():
            return "transform"
        case StoreUnavailable():
            return "store"
    return "spark"


def in_words(error: BaseException) -> str:
    """One paragraph: a JVM's stack trace is for the log."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FORESEEN):
        return text
    shown = text[:800] if isinstance(error, PySparkException) else text.splitlines()[0][:500]
    return f"{type(error).__name__}: {shown}"
