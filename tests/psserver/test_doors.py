from psserver.doors import Doors, DoorSettings, Entry

ELSEWHERE = "192.0.2.7"
LOOPBACK = "127.0.0.1"


def doors(**settings: int) -> Doors[int]:
    usual = {"connections": 4, "strangers": 3, "per_address": 3, "kept": 2, "failures": 3}
    return Doors(DoorSettings(**(usual | settings)))  # type: ignore[arg-type]


def greeted(at: Doors[int], *guests: int, host: str = LOOPBACK) -> None:
    for guest in guests:
        assert at.enter(guest, host, 0.0) == Entry()
        at.greeted(guest)


def test_who_comes_is_let_in() -> None:
    at = doors()
    assert at.enter(1, ELSEWHERE, 0.0) == Entry()


def test_a_newcomer_takes_the_place_of_the_stranger_that_has_waited_longest() -> None:
    at = doors()
    for guest in (1, 2, 3):
        assert at.enter(guest, LOOPBACK, 0.0) == Entry()
    at.greeted(2)
    assert at.enter(4, LOOPBACK, 0.0) == Entry()
    assert at.enter(5, LOOPBACK, 0.0) == Entry(instead_of=1)
    assert at.enter(6, LOOPBACK, 0.0) == Entry(instead_of=3)


def test_a_flood_of_strangers_keeps_nobody_out() -> None:
    at = doors()
    greeted(at, 1, 2)
    for guest in range(10, 1000):
        assert not at.enter(guest, LOOPBACK, 0.0).refused
        assert not at.enter(-guest, LOOPBACK, 0.0).refused
        if guest == 500:
            at.greeted(500)
    assert at.enter(2000, LOOPBACK, 0.0).instead_of not in (None, 1, 2, 500)


def test_beyond_the_limit_there_are_places_that_are_kept_and_then_none() -> None:
    at = doors()
    greeted(at, 1, 2, 3, 4)
    for guest in (5, 6):
        assert at.enter(guest, LOOPBACK, 0.0) == Entry(kept=True)
        at.greeted(guest)
    assert at.enter(7, LOOPBACK, 0.0) == Entry("connections")
    at.leave(7)  # it never was a guest
    assert at.enter(7, LOOPBACK, 0.0) == Entry("connections")
    at.leave(5)
    assert at.enter(8, LOOPBACK, 0.0) == Entry(kept=True)
    at.leave(1)
    assert at.enter(9, LOOPBACK, 0.0) == Entry()


def test_who_takes_a_strangers_place_stands_where_it_stood() -> None:
    at = doors()
    greeted(at, 1, 2, 3, 4)
    assert at.enter(5, LOOPBACK, 0.0) == Entry(kept=True)
    assert at.enter(6, LOOPBACK, 0.0) == Entry(kept=True, instead_of=5)
    at.greeted(6)
    assert at.enter(7, LOOPBACK, 0.0) == Entry(kept=True)
    at.greeted(7)
    assert at.enter(8, LOOPBACK, 0.0).refused


def test_one_address_has_a_share_and_no_more() -> None:
    at = doors(connections=100, strangers=100)
    for guest in (1, 2, 3):
        assert at.enter(guest, ELSEWHERE, 0.0) == Entry()
    assert at.enter(4, ELSEWHERE, 0.0) == Entry("address")
    assert at.enter(5, "192.0.2.8", 0.0) == Entry()
    at.leave(2)
    assert at.enter(4, ELSEWHERE, 0.0) == Entry()


def test_all_of_an_ipv6_network_is_one_address() -> None:
    at = doors(connections=100, strangers=100)
    for guest in (1, 2, 3):
        assert at.enter(guest, f"2001:db8::{guest}", 0.0) == Entry()
    assert at.enter(4, "2001:db8::ffff:1:2:3", 0.0) == Entry("address")
    assert at.enter(5, "2001:db8:0:1::1", 0.0) == Entry()


def test_ipv4_in_ipv6_and_scopes() -> None:
    at = doors(connections=100, strangers=100, per_address=1)
    assert at.enter(1, "::ffff:192.0.2.7", 0.0) == Entry()
    assert at.enter(2, ELSEWHERE, 0.0) == Entry("address")
    assert at.enter(3, "fe80::1%eth0", 0.0) == Entry()
    assert at.enter(4, "fe80::2%eth0", 0.0) == Entry("address")
    assert at.enter(5, "not: an address", 0.0) == Entry()
    assert at.enter(6, "", 0.0) == Entry()


def test_this_machines_addresses_have_all_the_places() -> None:
    at = doors(connections=100, strangers=100, per_address=1)
    for guest, host in enumerate((LOOPBACK, LOOPBACK, "127.8.8.8", "::1", "::1", "::ffff:127.0.0.1")):
        assert at.enter(guest, host, 0.0) == Entry()
    assert not any(at.failed(LOOPBACK, 0.0) for _ in range(100))


def test_an_address_whose_hellos_fail_is_shut_out_for_a_while() -> None:
    at = doors()
    assert [at.failed(ELSEWHERE, float(now)) for now in range(3)] == [False, False, True]
    assert at.enter(1, ELSEWHERE, 3.0) == Entry("shut_out")
    assert at.enter(1, "192.0.2.8", 3.0) == Entry()
    assert at.enter(2, ELSEWHERE, 61.9) == Entry("shut_out")
    assert at.enter(2, ELSEWHERE, 62.0) == Entry()


def test_failures_that_are_far_apart_shut_nobody_out() -> None:
    at = doors()
    for minute in range(100):
        assert not at.failed(ELSEWHERE, 61.0 * minute)
        assert not at.failed(ELSEWHERE, 61.0 * minute + 1)
    assert at.enter(1, ELSEWHERE, 61.0 * 100) == Entry()


def test_that_an_address_is_shut_out_is_said_once() -> None:
    at = doors()
    assert [at.failed(ELSEWHERE, 0.0) for _ in range(10)].count(True) == 1


def test_a_test_may_have_loopback_watched() -> None:
    at: Doors[int] = Doors(DoorSettings(failures=1, trusts_loopback=False))
    assert at.failed(LOOPBACK, 0.0)
    assert at.enter(1, LOOPBACK, 1.0) == Entry("shut_out")


def test_what_is_remembered_is_bounded() -> None:
    at = doors(connections=10, strangers=10)
    for number in range(100_000):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        at.failed(host, 0.0)
        at.enter(number, host, 0.0)
    assert len(at._failures) == 4096
    assert len(at._guests) == len(at._strangers) == 10
    assert sum(at._by_address.values()) == len(at._by_address) == 10
