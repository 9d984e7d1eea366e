"""The doctor's looks at the four buckets, by one probe object that is removed again."""

import time
from typing import TYPE_CHECKING

from msgspec import Struct

from services.cli.doctor_findings import Report
from services.cli.doctor_verdicts import date_ahead_s, judge_clock
from services.cli.edges import Edges
from shared.raw.objects import StoreUnavailable

if TYPE_CHECKING:
    from services.cli.buckets import Buckets

PROBE = "probes/doctor"


class Role(Struct, frozen=True):
    """``deletes``: whether a service of ours has to; where none has, a refusal is as it should be."""

    name: str
    variable: str
    deletes: bool


ROLES = (
    Role("raw", "TIDEMARK_RAW_BUCKET", deletes=False),
    Role("parked", "TIDEMARK_PARKED_BUCKET", deletes=True),
    Role("archive", "TIDEMARK_ARCHIVE_BUCKET", deletes=False),
    Role("lake", "TIDEMARK_LAKE_URI", deletes=True),
)


async def look_at(edges: Edges, role: Role, report: Report) -> None:
    bucket = _bucket(edges, role)
    if bucket is None:
        report.ok(role.name, f"{edges.lake.uri} is not on S3")
        return
    buckets, thing = await edges.buckets(), f"{role.name} {bucket}"
    if not await buckets.exists(bucket):
        report.wrong(thing, "does not exist", f"tidemark bootstrap, or correct {role.variable}")
        return
    removed = await _may(buckets, bucket, edges.namespace.prefix("") + PROBE, role, report)
    await _keeps(buckets, bucket, thing, report)
    if report.is_fine:
        fine = "refuses a second conditional PUT; may be listed, read, written"
        report.ok(thing, f"{fine}; probe removed" if removed else fine)


def _bucket(edges: Edges, role: Role) -> str | None:
    match role.name:
        case "raw":
            return edges.raw_bucket
        case "parked":
            return edges.parked_settings.bucket
        case "archive":
            return edges.archive_bucket
    return next(iter(edges.lake_bucket), None)


async def _may(buckets: "Buckets", bucket: str, key: str, role: Role, report: Report) -> bool:
    """PUT twice, GET, list, DELETE: whether it is gone. Another doctor may take the key meanwhile, or take it away."""
    store, thing = buckets.store(bucket), f"{role.name} {bucket}"
    allow = f"allow s3:%s on arn:aws:s3:::{bucket} (SECURITY.md lists each service's rights)"
    try:
        honours = await buckets.refuses_second_put(bucket, key)
    except StoreUnavailable as error:
        if not _is_denied(error):
            raise
        report.config(thing, "we may not write into it", allow % "PutObject")
        return True
    if not honours:
        text = "overwrites in spite of If-None-Match: two writers would both win, it can't hold a ledger or a Delta log"
        report.wrong(thing, text, f"use a store that answers 412, and name its bucket in {role.variable}")
    for right, call in (("GetObject", store.read(key)), ("ListBucket", store.keys_after(key, "", limit=1))):
        try:
            await call
        except StoreUnavailable as error:
            if not _is_denied(error):
                raise
            report.config(thing, f"we lack the right {right}", allow % right)
    try:
        await store.delete([key])
    except StoreUnavailable as error:
        if role.deletes:
            report.wrong(thing, f"the probe {key} stays there: {error}", allow % "DeleteObject")
        else:
            report.note(thing, f"nothing can be deleted, so the probe {key} stays; no service deletes here")
        return False
    return True


async def _keeps(buckets: "Buckets", bucket: str, thing: str, report: Report) -> None:
    from botocore.exceptions import ClientError

    try:
        rules = await buckets.expiring_rules(bucket)
    except ClientError as error:
        report.note(thing, f"its lifecycle rules can't be read ({error.response['Error']['Code']})")
        return
    for rule in rules:
        command = f"aws s3api get-bucket-lifecycle-configuration --bucket {bucket}"
        report.wrong(
            thing, f"lifecycle rule {rule} deletes objects", f"remove or disable that rule; `{command}` shows it"
        )


def _is_denied(error: StoreUnavailable) -> bool:
    return any(code in str(error) for code in ("AccessDenied", "Forbidden", ": 403"))


async def look_at_clock(edges: Edges, report: Report) -> None:
    from shared.producer.exchange import read_date_us

    buckets = await edges.buckets()
    asked_us = time.time_ns() // 1000
    date_us = read_date_us(await buckets.date(edges.raw_bucket))
    answered_us = time.time_ns() // 1000
    if date_us is None:
        report.note("s3", "not compared: its answers have no Date")
        return
    ahead_s, uncertain_s = date_ahead_s(date_us, asked_us, answered_us)
    fine = f"at most {abs(ahead_s) + uncertain_s:.1f} s apart"
    report.judged("s3", judge_clock("the store's machine", ahead_s, uncertain_s), fine)
