"""What a table's care decides, without Spark: whose a property is, how old a file must be, what may be purged."""

import pytest

from services.delta_loader import care

DEFAULTS = {"delta.enableDeletionVectors": "true", care.RETENTION: "interval 7 days"}
DAY_US = 86_400_000_000


def test_what_is_missing_is_set_and_recorded_once() -> None:
    plan = care.plan_properties({}, DEFAULTS, DEFAULTS)
    after = care.plan_properties(plan.set_, DEFAULTS, DEFAULTS)

    assert {name: plan.set_[name] for name in DEFAULTS} == DEFAULTS
    assert not plan.kept
    assert after.is_empty


def test_what_somebody_has_set_by_hand_is_named_and_kept() -> None:
    found = {**care.plan_properties({}, DEFAULTS, DEFAULTS).set_, care.RETENTION: "interval 30 days"}

    plan = care.plan_properties(found, DEFAULTS, DEFAULTS)
    later = care.plan_properties({**found, **plan.set_}, DEFAULTS, DEFAULTS)

    assert plan.kept == (care.Kept(care.RETENTION, "interval 30 days", "interval 7 days"),)
    assert care.RETENTION not in plan.set_
    assert later.kept == plan.kept
    assert later.is_empty


def test_what_we_have_set_follows_the_entity_and_leaves_with_it() -> None:
    first = {**DEFAULTS, "delta.checkpointInterval": "50"}
    found = care.plan_properties({}, first, DEFAULTS).set_
    changed = care.plan_properties(found, {**DEFAULTS, "delta.checkpointInterval": "20"}, DEFAULTS)
    gone = care.plan_properties(found, DEFAULTS, DEFAULTS)
    by_hand = care.plan_properties({**found, "delta.checkpointInterval": "7"}, DEFAULTS, DEFAULTS)

    assert changed.set_["delta.checkpointInterval"] == "20"
    assert gone.unset == ("delta.checkpointInterval",)
    assert by_hand.unset == ()


def test_a_table_from_before_the_record_has_our_defaults_as_ours() -> None:
    plan = care.plan_properties(DEFAULTS, {**DEFAULTS, care.RETENTION: "interval 10 days"}, DEFAULTS)

    assert plan.set_[care.RETENTION] == "interval 10 days"


def test_a_property_is_found_however_it_is_spelled() -> None:
    wanted = {"delta.CheckpointInterval": "20"}

    assert care.plan_properties({"delta.checkpointInterval": "9"}, wanted, {}).kept[0].found == "9"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("interval 7 days", 604_800),
        ("interval 1 week 2 hours", 612_000),
        ("INTERVAL 168 HOURS", 604_800),
        ("30 minutes", 1_800),
        ("interval 1 month", None),
        ("7", None),
        ("", None),
        ("interval 7 days or so", None),
    ],
)
def test_intervals_are_read_as_delta_reads_them(text: str, seconds: int | None) -> None:
    assert care.interval_s(text) == seconds


def test_no_table_may_keep_its_files_for_less_than_seven_days() -> None:
    assert "less than 7 days" in care.problems_of({care.RETENTION: "interval 6 days"})[0]
    assert "no interval" in care.problems_of({care.RETENTION: "soon"})[0]
    assert care.problems_of({care.RETENTION: "interval 8 days"}) == care.problems_of({}) == []


def test_nothing_is_purged_that_a_parked_event_could_bring_back() -> None:
    now_us, stay_s = 100 * DAY_US, care.longest_stay_s(7 * 86_400.0, 7 * 86_400.0)

    care.check_horizon(now_us - 15 * DAY_US, now_us, stay_s)
    with pytest.raises(care.HorizonTooNear, match=r"come back to life\. Name a time at least 15 days ago"):
        care.check_horizon(now_us - 15 * DAY_US + 1, now_us, stay_s)
