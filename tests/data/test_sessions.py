"""Sessions as users, and the range of times in the report."""

import time

import polars as pl
import pytest

from recexp.data.audit import Report
from recexp.data.cache import prepare, read_meta
from recexp.data.filters import report_times, split_sessions
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.support.events import P3, Event, dataset, names, random_events, write

DAY = 86_400_000
IN_2014 = 16_200 * DAY


def sessions_of(events, minutes):
    """In plain Python: the session of each event, in the order of the events."""
    found = [None] * len(events)
    for user in {event.user for event in events}:
        at = [n for n, event in enumerate(events) if event.user == user]
        at.sort(key=lambda n: events[n].time)  # stable
        number = 1
        for before, n in zip([None, *at], at, strict=False):
            if before is not None and events[n].time - events[before].time > minutes * 60_000:
                number += 1
            found[n] = f"{user}#{number}"
    return found


def frame_of(events, ids=str):
    columns = {"user": [ids(e.user) for e in events], "timestamp": [e.time for e in events]}
    return pl.DataFrame(columns)


@pytest.mark.parametrize("minutes", [0, 0.05, 1, 10_000])
def test_a_session_ends_where_the_gap_is_longer(minutes):
    events = random_events(3)  # with ties in time, in no order
    report = Report()
    split = split_sessions(frame_of(events), {"gap_minutes": minutes}, report)
    assert split["user"].to_list() == sessions_of(events, minutes)
    n_sessions = len(set(sessions_of(events, minutes)))
    assert report.lines == [f"dataset.sessions: 25 users have {n_sessions:,} sessions"]
    numbered = frame_of(events, lambda user: int(user[1:]))
    split = split_sessions(numbered, {"gap_minutes": minutes}, report)
    assert split["user"].to_list() == [name[1:] for name in sessions_of(events, minutes)]


def test_a_gap_of_just_the_length_ends_no_session():
    events = [Event("u", "i", "view", ms) for ms in (0, 60_000, 120_001)]
    assert sessions_of(events, 1) == ["u#1", "u#1", "u#2"]
    split = split_sessions(frame_of(events), {"gap_minutes": 1}, Report())
    assert split["user"].to_list() == ["u#1", "u#1", "u#2"]


def test_sessions_are_users_of_the_data_set(tmp_path):
    """Filters count events of sessions, and arrays equal those of files with session ids."""
    events = random_events(0, n_events=600)
    ids = sessions_of(events, 0.1)
    options = {"filters": [{"user_min": 3}]}
    shop = write(tmp_path / "raw", events)
    split = prepare(dataset(shop, sessions={"gap_minutes": 0.1}, **options), P3, tmp_path / "cache")
    by_hand = [event._replace(user=name) for event, name in zip(events, ids, strict=True)]
    expected = prepare(
        dataset(write(tmp_path / "by hand", by_hand), **options), P3, tmp_path / "cache"
    )
    assert read_meta(split)["arrays"] == read_meta(expected)["arrays"]
    assert set(names(Store.open(split), "user")) < set(ids) | {""}


def test_sessions_have_the_features_of_their_user(tmp_path):
    shop = write(tmp_path / "raw", random_events(0))
    ages = "".join(f"u{n},{20 + n}\n" for n in range(25))
    (shop / "users.csv").write_text("user,age\n" + ages)
    features = {"users": {"file": "users.csv", "user": "user", "columns": {"age": "categorical"}}}
    given = dataset(shop, features=features, sessions={"gap_minutes": 0.1})
    opened = Store.open(prepare(given, P3, tmp_path / "cache"))
    # Value n of the feature is the n-th age in order.
    age_U = opened.schema.user_attributes["age"].id_VM[:, 0].tolist()
    owners = [int(name.partition("#")[0][1:]) for name in names(opened, "user")]
    assert len(set(owners)) < len(owners)
    known = sorted(set(owners), key=lambda owner: str(20 + owner))
    assert age_U == [1 + known.index(owner) for owner in owners]


@pytest.mark.parametrize(
    "sessions", [{}, {"gap": 3}, 30, {"gap_minutes": "30"}, {"gap_minutes": -1}]
)
def test_wrong_sessions_are_refused(tmp_path, sessions):
    with pytest.raises(RecexpError, match=r"dataset\.sessions.*: must be"):
        dataset(tmp_path, sessions=sessions)


def lines_of(times, has_times=True):
    report = Report()
    report_times(pl.DataFrame({"timestamp": times}), has_times, report)
    return report.lines


def test_the_range_of_times_is_reported():
    assert lines_of([IN_2014, IN_2014 + 100 * DAY]) == [
        "times run from 2014-05-10 00:00 to 2014-08-18 00:00 (UTC)"
    ]
    assert lines_of([1, 2], has_times=False) == [
        "the events have no times: their place in the files is their order"
    ]


def test_times_of_a_wrong_unit_are_noticed():
    [line, warning] = lines_of([IN_2014 // 1000] * 3 + [IN_2014])  # milliseconds as seconds
    assert line == "times run from 1970-01-17 04:48 to 2014-05-10 00:00 (UTC)"
    assert warning == "warning: 3 event(s) lie before 1980: check the unit of the times"
    tomorrow = int(time.time() * 1000) + 2 * DAY
    assert lines_of([IN_2014, tomorrow])[1].startswith("warning: 1 event(s) lie in the future")
    dates = [20_140_515_000, 20_150_101_000]  # dates as seconds
    assert lines_of(dates)[1].endswith(
        "numbers such as 20140515 are dates: dataset.source.time_unit=%Y%m%d"
    )


def test_files_without_times_are_not_warned_of(tmp_path):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    shop.source = {**shop.source, "timestamp": None}
    report = read_meta(prepare(shop, P3, tmp_path / "cache"))["report"]
    assert not [line for line in report if "warning" in line]
