-- Microseconds since 1970, UTC: the unit of every column that ends in _us.
CREATE FUNCTION us(moment timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN (extract(epoch FROM moment) * 1000000)::bigint;

-- One row per entity: where its reading stands, who holds it, and which stamps its owner may issue.
CREATE TABLE entity_cursor (
    entity text PRIMARY KEY,
    cursor_us bigint NOT NULL,
    swept_us bigint NOT NULL,
    cap_swept_us bigint NOT NULL,
    window_us bigint NOT NULL,
    longest_answer_rows integer NOT NULL DEFAULT 0,
    newest_us bigint,
    reading jsonb NOT NULL DEFAULT '{}',               -- what only the reading algorithm reads
    seen_floor_us bigint NOT NULL DEFAULT 0,           -- seen entries dated below are no longer needed
    digests_after_seq bigint NOT NULL DEFAULT 0,       -- a rewind ignores the pages up to here
    commit_seq bigint NOT NULL DEFAULT 0,
    shown_us bigint NOT NULL DEFAULT 0,                -- last stamp of the last committed page
    shown_limit_us bigint NOT NULL DEFAULT 0,          -- the owner issues no stamp at or beyond it
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    lease_until timestamptz,
    unclean boolean NOT NULL DEFAULT false,            -- pages may have been published without being recorded
    paused_reason text,
    paused_by text,
    paused_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    committed_at timestamptz,
    CHECK (shown_us <= shown_limit_us),
    CHECK ((owner IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 50);                              -- rewritten at each page: room for updates in place

-- One row per page, in the order of commits: which changes were seen. Small neighbours are merged now and then.
CREATE TABLE seen_page (
    entity text NOT NULL REFERENCES entity_cursor,
    seq bigint NOT NULL,
    min_us bigint NOT NULL,
    max_us bigint NOT NULL,
    entries bytea NOT NULL CHECK (octet_length(entries) > 0),
    PRIMARY KEY (entity, seq)
);
ALTER TABLE seen_page ALTER COLUMN entries SET STORAGE EXTERNAL;  -- digests do not compress

-- Who moved a cursor, when and why. Equal moves in a row are one row, counted.
CREATE TABLE cursor_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity text NOT NULL REFERENCES entity_cursor,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    moves bigint NOT NULL DEFAULT 1,
    who text NOT NULL,
    why text NOT NULL,
    cursor_from_us bigint NOT NULL,
    cursor_to_us bigint NOT NULL,
    swept_from_us bigint NOT NULL,
    cap_swept_from_us bigint NOT NULL,
    epoch bigint NOT NULL
);
CREATE INDEX cursor_history_entity ON cursor_history (entity, id);
