-- A small bank. Every change of an account or a payment writes its event to change_outbox within its own transaction.

CREATE TABLE accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    holder text NOT NULL,
    kind text NOT NULL,
    currency text NOT NULL,
    balance numeric(14, 2) NOT NULL,
    street text NOT NULL,
    city text NOT NULL,
    postcode text,
    country text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    deleted boolean NOT NULL DEFAULT false,
    version integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    flaw text                                   -- what is wrong with the JSON of this change, if anything
);

CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts,
    amount numeric(14, 2) NOT NULL,
    currency text NOT NULL,
    status text NOT NULL,
    counterparty text NOT NULL,
    iban text NOT NULL,
    bank_name text,
    bank_country text NOT NULL,
    note text,
    booked_on date NOT NULL DEFAULT current_date,
    deleted boolean NOT NULL DEFAULT false,
    version integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    flaw text
);

-- What GET /cdc shows of the entities account_events and payment_events: byte for byte, for ever.
CREATE TABLE change_outbox (
    id bigint PRIMARY KEY,
    entity text NOT NULL,
    updated_at timestamptz NOT NULL,
    payload text NOT NULL
);
CREATE SEQUENCE change_number;

CREATE INDEX ON accounts (updated_at, id);
CREATE INDEX ON payments (updated_at, id);
CREATE INDEX ON change_outbox (entity, updated_at, id);

CREATE FUNCTION iso(moment timestamptz) RETURNS text LANGUAGE sql STABLE
    RETURN to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

CREATE FUNCTION flawed(shown jsonb, flaw text) RETURNS jsonb LANGUAGE sql IMMUTABLE
    RETURN CASE flaw
        WHEN 'amount_as_text' THEN shown || jsonb_build_object(
            CASE WHEN shown ? 'amount' THEN 'amount' ELSE 'balance' END, 'twelve fifty')
        WHEN 'no_currency' THEN shown - 'currency'
        WHEN 'unknown_field' THEN shown || '{"colour": "red"}'
        WHEN 'unknown_symbol' THEN shown || jsonb_build_object(
            CASE WHEN shown ? 'status' THEN 'status' ELSE 'kind' END, 'mislaid')
        WHEN 'no_time' THEN shown - 'updated_at'
        WHEN 'opened_in_words' THEN shown || '{"opened_at": "last Tuesday"}'
        ELSE shown
    END;

-- event_id null: as the entity accounts shows the row; else as account_events shows the change.
CREATE FUNCTION account_json(a accounts, event_id bigint, op text) RETURNS text LANGUAGE sql STABLE
    RETURN flawed(
        CASE WHEN event_id IS NULL THEN '{}' ELSE jsonb_build_object('event_id', event_id) END
        || jsonb_build_object(
            'op', op, 'id', a.id, 'version', a.version, 'updated_at', iso(a.updated_at), 'holder', a.holder,
            'kind', a.kind, 'currency', a.currency, 'balance', a.balance, 'opened_at', iso(a.opened_at),
            'address', jsonb_build_object(
                'street', a.street, 'city', a.city, 'postcode', a.postcode, 'country', a.country)),
        a.flaw)::text;

CREATE FUNCTION payment_json(p payments, event_id bigint, op text) RETURNS text LANGUAGE sql STABLE
    RETURN flawed(
        CASE WHEN event_id IS NULL THEN '{}' ELSE jsonb_build_object('event_id', event_id) END
        || jsonb_build_object(
            'op', op, 'id', p.id, 'version', p.version, 'updated_at', iso(p.updated_at), 'account_id', p.account_id,
            'amount', p.amount, 'currency', p.currency, 'status', p.status, 'booked_on', p.booked_on, 'note', p.note,
            'counterparty', jsonb_build_object(
                'name', p.counterparty, 'iban', p.iban,
                'bank', jsonb_build_object('name', p.bank_name, 'country', p.bank_country))),
        p.flaw)::text;

-- now() is the transaction's beginning, in the source's tick of a millisecond: a change that commits late carries an
-- old stamp, and one that waited for a lock a stamp older than the version it replaces. Real tables do just this.
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := date_trunc('milliseconds', now());
    IF TG_OP = 'UPDATE' THEN
        NEW.version := OLD.version + 1;
        IF NEW.flaw = OLD.flaw THEN
            NEW.flaw := NULL;
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    event_id bigint := nextval('change_number');
    op text := CASE WHEN NEW.deleted THEN 'd' WHEN TG_OP = 'INSERT' THEN 'c' ELSE 'u' END;
BEGIN
    IF TG_TABLE_NAME = 'accounts' THEN
        INSERT INTO change_outbox VALUES (event_id, 'account_events', NEW.updated_at, account_json(NEW, event_id, op));
    ELSE
        INSERT INTO change_outbox VALUES (event_id, 'payment_events', NEW.updated_at, payment_json(NEW, event_id, op));
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION record_change();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION record_change();
