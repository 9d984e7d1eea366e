"""The doctor's look at one entity's source: the same question twice, by the poller's own client. Prints no values."""

import time
from typing import TYPE_CHECKING

from msgspec import Struct

from services.cli.doctor_findings import Report
from services.cli.doctor_verdicts import date_ahead_s, judge_answers, judge_clock
from services.cli.edges import Edges, meaning
from shared.entities import Entity

if TYPE_CHECKING:
    from shared.events.model import Sighting
    from shared.producer.feed import FeedAnswer

BEFORE_US = 3_600_000_000
"""How far before the cursor is asked; without a cursor, how far before now."""


class Question(Struct, frozen=True):
    since_us: int
    limit: int | None


async def look_at(edges: Edges, entity: Entity, report: Report) -> None:
    from shared.events.split import MalformedPage

    if not entity.source.url:
        report.note(entity.name, f"not asked: variable {entity.source.url_env} is not set")
        return
    feed = await edges.feed(entity)
    question = Question(await _since_us(edges, entity), entity.page_rows)
    try:
        asked_us = time.time_ns() // 1000
        answer = await feed.fetch(question)
        answered_us = time.time_ns() // 1000
        first = await _sightings(entity, answer)
        again = await _sightings(entity, await feed.fetch(question))
    except MalformedPage as error:
        remedy = "correct `records` in the entity file: a JSON pointer to the array, empty where the body is the array"
        report.wrong(entity.name, f"the answer is no page: {error}", remedy)
        return
    judgements = judge_answers(entity.rules, question.since_us, first, again)
    report.judged(entity.name, judgements, f"answers the contract: {len(first)} rows, asked twice")
    _judge_date(entity, answer, asked_us, answered_us, report)


def _judge_date(entity: Entity, answer: "FeedAnswer", asked_us: int, answered_us: int, report: Report) -> None:
    if answer.server_date_us is None:
        text = "answers have no Date: the cursor trusts this machine's clock alone"
        report.note(entity.name, text, "let the source, or the proxy before it, send Date")
        return
    ahead_s, uncertain_s = date_ahead_s(answer.server_date_us, asked_us, answered_us)
    if skewed := judge_clock("the source's machine", ahead_s, uncertain_s):
        report.judged(entity.name, skewed)


async def _sightings(entity: Entity, answer: "FeedAnswer") -> "list[Sighting]":
    from shared.events.identity import Identifier
    from shared.events.split import split_page

    return Identifier(entity.rules).identify(split_page(answer.body, entity.records))


async def _since_us(edges: Edges, entity: Entity) -> int:
    """An hour before the cursor, so that there is something to see; an hour ago where Postgres doesn't know better."""
    now_us = time.time_ns() // 1000
    try:
        cursors = {status.entity: status.cursor_us for status in await (await edges.checkpoints()).entities()}
    except Exception as error:
        if meaning(error) is None:
            raise
        cursors = {}
    return max(0, cursors.get(entity.name, now_us) - BEFORE_US)
