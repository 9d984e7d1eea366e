"""The SQL of ``Checkpoints``, written for schema ``tidemark``.

What a poller writes is one statement, so one transaction. Each write by an owner is fenced: it touches a row only while
that row names the owner and its epoch.
"""

ENSURE = """
INSERT INTO tidemark.entity_cursor (entity, cursor_us, swept_us, cap_swept_us, window_us)
SELECT $1, at_us, at_us, at_us, $3 FROM (SELECT coalesce($2::bigint, tidemark.us(clock_timestamp())) AS at_us) AS start
ON CONFLICT (entity) DO NOTHING
RETURNING entity
"""

# An owner that still stands in the row has not released: what it published last may not be recorded.
# "owner = $2": our own claim, whose answer was lost.
ACQUIRE = """
UPDATE tidemark.entity_cursor SET
    unclean = unclean OR owner IS NOT NULL,
    epoch = epoch + 1,
    owner = $2,
    lease_until = clock_timestamp() + $3::bigint * interval '1 microsecond',
    shown_limit_us = greatest(shown_limit_us, tidemark.us(clock_timestamp())) + $3::bigint
WHERE entity = $1 AND paused_reason IS NULL
  AND (owner IS NULL OR owner = $2 OR lease_until <= clock_timestamp())
RETURNING epoch, unclean, shown_limit_us
"""

EXISTS = "SELECT 1 FROM tidemark.entity_cursor WHERE entity = $1"

RENEW = """
UPDATE tidemark.entity_cursor SET
    lease_until = clock_timestamp() + $4::bigint * interval '1 microsecond',
    shown_limit_us = greatest(shown_limit_us, greatest($5::bigint, tidemark.us(clock_timestamp())) + $4::bigint)
WHERE entity = $1 AND epoch = $2 AND owner = $3
RETURNING shown_limit_us, paused_reason
"""

# A clean owner issues no further stamp: the limit comes back to the last one, so that quick restarts don't push it on.
RELEASE = """
UPDATE tidemark.entity_cursor SET
    owner = NULL,
    lease_until = NULL,
    unclean = unclean OR NOT $4::boolean,
    shown_limit_us = CASE WHEN $4::boolean AND $5::bigint IS NOT NULL
                     THEN least(shown_limit_us, greatest(shown_us, $5::bigint) + 1) ELSE shown_limit_us END
WHERE entity = $1 AND epoch = $2 AND owner = $3
RETURNING entity
"""

LOAD_STATE = """
SELECT cursor_us, swept_us, cap_swept_us, window_us, longest_answer_rows, newest_us, reading
FROM tidemark.entity_cursor WHERE entity = $1 AND epoch = $2 AND owner = $3
"""

LOAD_PAGES = """
SELECT p.seq, p.min_us, p.max_us, p.entries
FROM tidemark.seen_page AS p JOIN tidemark.entity_cursor AS c USING (entity)
WHERE p.entity = $1 AND p.seq > $2 AND p.seq > c.digests_after_seq AND p.max_us >= c.seen_floor_us
ORDER BY p.seq LIMIT $3
"""

ALL_PAGES = """
SELECT seq, min_us, max_us, entries FROM tidemark.seen_page
WHERE entity = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""

# A page is known by its last stamp, which rises strictly: a commit that is repeated, because its answer was lost,
# finds it and changes nothing.
#
# A statement sees the cursor as it was before it began: "was" is the place that the cursor leaves.
COMMIT = """
WITH moved AS (
    UPDATE tidemark.entity_cursor SET
        commit_seq = commit_seq + 1,
        shown_us = $4,
        seen_floor_us = $5,
        cursor_us = $11, swept_us = $12, cap_swept_us = $13,
        window_us = $14, longest_answer_rows = $15, newest_us = $16, reading = $17::jsonb,
        unclean = false,
        committed_at = clock_timestamp()
    WHERE entity = $1 AND epoch = $2 AND owner = $3 AND shown_us < $4
    RETURNING entity, epoch, commit_seq, paused_reason
), page AS (
    INSERT INTO tidemark.seen_page (entity, seq, min_us, max_us, entries)
    SELECT entity, commit_seq, $6, $7, $8 FROM moved WHERE octet_length($8::bytea) > 0
), was AS (
    SELECT cursor_us, swept_us, cap_swept_us FROM tidemark.entity_cursor
    WHERE entity = $1 AND $9::text IS NOT NULL
), latest AS (
    SELECT id, who, why FROM tidemark.cursor_history
    WHERE entity = $1 AND $9::text IS NOT NULL ORDER BY id DESC LIMIT 1
), again AS (
    UPDATE tidemark.cursor_history AS h
    SET at = clock_timestamp(), moves = h.moves + 1, cursor_to_us = $11, epoch = moved.epoch
    FROM moved, latest
    WHERE h.id = latest.id AND latest.who = $9 AND latest.why = $10
    RETURNING h.id
), fresh AS (
    INSERT INTO tidemark.cursor_history
        (entity, who, why, cursor_from_us, cursor_to_us, swept_from_us, cap_swept_from_us, epoch)
    SELECT moved.entity, $9, $10, was.cursor_us, $11, was.swept_us, was.cap_swept_us, moved.epoch
    FROM moved, was WHERE NOT EXISTS (SELECT FROM again)
)
SELECT commit_seq, paused_reason FROM moved
"""

WHO_COMMITTED = """
SELECT epoch, owner, shown_us, commit_seq, paused_reason FROM tidemark.entity_cursor WHERE entity = $1
"""

# Neighbours are joined up to $4 bytes. What has half of that, or is not loaded any more, stays and parts the runs:
# the order of entries is kept, and no page is rewritten again and again.
MERGE = """
WITH fence AS MATERIALIZED (
    SELECT seen_floor_us, digests_after_seq FROM tidemark.entity_cursor
    WHERE entity = $1 AND epoch = $2 AND owner = $3 FOR UPDATE
), page AS (
    SELECT p.seq, octet_length(p.entries)::bigint AS size,
        octet_length(p.entries) < $4::bigint / 2
            AND p.max_us >= fence.seen_floor_us AND p.seq > fence.digests_after_seq AS joins
    FROM tidemark.seen_page AS p, fence WHERE p.entity = $1
), island AS (
    SELECT seq, size, joins, count(*) FILTER (WHERE NOT joins) OVER (ORDER BY seq) AS island FROM page
), placed AS (
    SELECT seq, island, div(sum(size) OVER (PARTITION BY island ORDER BY seq) - size, $4::bigint) AS part
    FROM island WHERE joins
), run AS (
    SELECT island, part, min(seq) AS first_seq, max(seq) AS last_seq
    FROM placed GROUP BY island, part HAVING count(*) > 1
), gone AS (
    DELETE FROM tidemark.seen_page AS p USING run
    WHERE p.entity = $1 AND p.seq BETWEEN run.first_seq AND run.last_seq
    RETURNING run.last_seq AS run_seq, p.seq, p.min_us, p.max_us, p.entries
), joined AS (
    INSERT INTO tidemark.seen_page (entity, seq, min_us, max_us, entries)
    SELECT $1, run_seq, min(min_us), max(max_us), string_agg(entries, ''::bytea ORDER BY seq)
    FROM gone GROUP BY run_seq
    RETURNING seq
)
SELECT (SELECT count(*) FROM fence) AS fences, (SELECT count(*) FROM gone) AS gone,
    (SELECT count(*) FROM joined) AS joined
"""

# Read only when there is enough to make an object worth while.
UNLOADED = """
WITH unloaded AS (
    SELECT p.seq, octet_length(p.entries)::bigint AS size,
        sum(octet_length(p.entries)::bigint) OVER (ORDER BY p.seq) AS so_far,
        count(*) OVER () AS pages, sum(octet_length(p.entries)::bigint) OVER () AS bytes
    FROM tidemark.seen_page AS p JOIN tidemark.entity_cursor AS c USING (entity)
    WHERE p.entity = $1 AND c.epoch = $2 AND c.owner = $3
      AND (p.max_us < c.seen_floor_us OR p.seq <= c.digests_after_seq)
)
SELECT p.seq, p.min_us, p.max_us, p.entries
FROM unloaded JOIN tidemark.seen_page AS p ON p.entity = $1 AND p.seq = unloaded.seq
WHERE (unloaded.pages >= $4 OR unloaded.bytes >= $5) AND unloaded.so_far - unloaded.size < $5
ORDER BY p.seq
"""

# Size and seq name a page's content: a page that was joined with others since has grown.
FORGET = """
WITH fence AS MATERIALIZED (
    SELECT entity FROM tidemark.entity_cursor WHERE entity = $1 AND epoch = $2 AND owner = $3 FOR UPDATE
), gone AS (
    DELETE FROM tidemark.seen_page AS p
    USING fence, unnest($4::bigint[], $5::bigint[]) AS archived (seq, size)
    WHERE p.entity = fence.entity AND p.seq = archived.seq AND octet_length(p.entries) = archived.size
    RETURNING p.seq
)
SELECT (SELECT count(*) FROM fence) AS fences, (SELECT count(*) FROM gone) AS gone
"""

ENTITIES = """
SELECT c.*, (extract(epoch FROM c.lease_until - clock_timestamp()))::float8 AS lease_left_s,
    tidemark.us(c.paused_at) AS paused_at_us,
    tidemark.us(c.committed_at) AS committed_at_us,
    coalesce(s.pages, 0) AS pages, coalesce(s.seen_bytes, 0)::bigint AS seen_bytes
FROM tidemark.entity_cursor AS c
LEFT JOIN (
    SELECT entity, count(*) AS pages, sum(octet_length(entries)) AS seen_bytes FROM tidemark.seen_page GROUP BY entity
) AS s USING (entity)
ORDER BY c.entity
"""

STANDING = """
SELECT cursor_us, swept_us, cap_swept_us, window_us, longest_answer_rows, newest_us, reading,
    shown_us, commit_seq,
    owner IS NOT NULL AND lease_until > clock_timestamp() AS held,
    unclean OR (owner IS NOT NULL AND lease_until <= clock_timestamp()) AS left_unclean
FROM tidemark.entity_cursor WHERE entity = $1
"""

PAUSE = """
WITH changed AS (
    UPDATE tidemark.entity_cursor SET paused_reason = $2, paused_by = $3, paused_at = clock_timestamp()
    WHERE entity = $1 AND paused_reason IS NULL
    RETURNING entity, cursor_us, swept_us, cap_swept_us, epoch
), noted AS (
    INSERT INTO tidemark.cursor_history
        (entity, who, why, cursor_from_us, cursor_to_us, swept_from_us, cap_swept_from_us, epoch)
    SELECT entity, $3, 'paused: ' || $2, cursor_us, cursor_us, swept_us, cap_swept_us, epoch FROM changed
)
SELECT count(*) FROM changed
"""

PAUSED_REASON = "SELECT paused_reason FROM tidemark.entity_cursor WHERE entity = $1"

RESUME = """
WITH changed AS (
    UPDATE tidemark.entity_cursor SET paused_reason = NULL, paused_by = NULL, paused_at = NULL
    WHERE entity = $1 AND paused_reason IS NOT NULL
    RETURNING entity, cursor_us, swept_us, cap_swept_us, epoch
), noted AS (
    INSERT INTO tidemark.cursor_history
        (entity, who, why, cursor_from_us, cursor_to_us, swept_from_us, cap_swept_from_us, epoch)
    SELECT entity, $2, 'resumed', cursor_us, cursor_us, swept_us, cap_swept_us, epoch FROM changed
)
SELECT count(*) FROM changed
"""

HISTORY = """
SELECT entity, who, why, moves, cursor_from_us, cursor_to_us, swept_from_us, cap_swept_from_us, epoch,
    tidemark.us(first_at) AS first_at_us, tidemark.us(at) AS at_us
FROM tidemark.cursor_history WHERE entity = $1 ORDER BY id DESC LIMIT $2
"""

LOCK_CURSOR = """
SELECT cursor_us, swept_us, cap_swept_us, window_us, longest_answer_rows, newest_us, reading
FROM tidemark.entity_cursor WHERE entity = $1 FOR UPDATE
"""

# The running owner is fenced and loads anew. A rewind ignores the pages recorded so far: what it reads is published.
SET_CURSOR = """
UPDATE tidemark.entity_cursor SET
    digests_after_seq = CASE WHEN $2 < cursor_us THEN commit_seq ELSE digests_after_seq END,
    seen_floor_us = least(seen_floor_us, $2),
    cursor_us = $2, swept_us = $3, cap_swept_us = $4,
    window_us = $5, longest_answer_rows = $6, newest_us = $7, reading = $8::jsonb,
    unclean = unclean OR owner IS NOT NULL,
    epoch = epoch + 1,
    owner = NULL,
    lease_until = NULL
WHERE entity = $1
RETURNING epoch
"""

NOTE_MOVE = """
INSERT INTO tidemark.cursor_history
    (entity, who, why, cursor_from_us, cursor_to_us, swept_from_us, cap_swept_from_us, epoch)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


def for_schema(statement: str, schema: str) -> str:
    """The statement for another schema than ``tidemark``."""
    return statement.replace("tidemark.", f'"{schema}".')
