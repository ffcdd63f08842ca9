"""Which connection is closed when there are too many."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from resdeploy.runtime.serving.http.connection_table import (
    MAX_OTHER_ANSWERS,
    PAUSE_SECONDS,
    SPARE_CONNECTIONS,
    ConnectionTable,
    client_network,
)


def connect(table: ConnectionTable, network: str) -> Any:
    connection = Mock(network=network, has_input=lambda: False)
    table.add(connection)
    return connection


def closed(*connections: Any) -> list[bool]:
    return [connection.task.cancel.called for connection in connections]


def test_the_longest_wait_of_the_network_with_most_connections_ends() -> None:
    table = ConnectionTable(8)
    good = connect(table, "good")
    crowd = [connect(table, "crowd") for _ in range(6)]
    table.mark_working(crowd[0])
    table.mark_waiting(crowd[1])  # begins to wait again
    assert table.make_room("crowd")  # it has its share
    assert closed(good, *crowd) == [False, False, False, True, False, False, False]
    connect(table, "crowd")
    connect(table, "new")
    assert table.make_room("new")  # all together are too many
    assert closed(good, *crowd) == [False, False, False, True, True, False, False]
    assert not table.over_capacity


def test_a_connection_whose_request_has_arrived_stays_open() -> None:
    table = ConnectionTable(8)
    first, second = connect(table, "crowd"), connect(table, "crowd")
    first.has_input = lambda: True
    assert table.close_longest_wait("crowd")
    assert closed(first, second) == [False, True]
    assert not table.close_longest_wait()


def test_only_spare_connections_are_left_while_the_server_works_for_all() -> None:
    table = ConnectionTable(4)
    for number in range(4 + SPARE_CONNECTIONS):
        assert table.make_room(str(number))
        table.mark_working(connect(table, str(number)))
    assert table.over_capacity
    assert not table.make_room("more")
    last = connect(table, "last")
    assert table.make_room("more")  # one that waits is closed again
    assert closed(last) == [True]
    table.mark_waiting(last)  # a closed connection is not closed twice
    assert not table.close_longest_wait()


def test_many_answers_without_a_model_are_followed_by_pauses() -> None:
    table, (low, high) = ConnectionTable(4), PAUSE_SECONDS

    def pauses(network: str, now: float) -> list[float]:
        return [table.pause_after_other_answer(network, now) for _ in range(MAX_OTHER_ANSWERS + 3)]

    for now in (7.0, 8.9):  # each second anew
        crowd = pauses("crowd", now)
        assert not any(crowd[:MAX_OTHER_ANSWERS])
        assert all(low <= pause <= high for pause in crowd[MAX_OTHER_ANSWERS:])
    assert table.pause_after_other_answer("other", 8.9) == 0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert client_network(address) == network
