"""Totals and rates."""

import pytest

from protocol.connection import Traffic
from psserver.load_meter import LoadMeter


def test_nothing_has_been_done() -> None:
    load = LoadMeter(Traffic()).read(8, 2, 0.0)
    assert (load.bytes, load.rows, load.requests, load.keys) == (8, 2, 0, 0)
    assert (load.requests_per_second, load.keys_per_second) == (0.0, 0.0)


def test_rates_are_over_the_last_few_seconds() -> None:
    meter = LoadMeter(Traffic())
    meter.read(0, 0, 0.0)
    for second in range(1, 20):
        meter.requests += 10 if second < 10 else 30
        meter.keys += 1000
        load = meter.read(0, 0, float(second))
    assert load.requests_per_second == pytest.approx(30)
    assert load.keys_per_second == pytest.approx(1000)
    assert load.requests == 9 * 10 + 10 * 30


def test_a_reading_after_a_long_silence_is_a_mean_over_it() -> None:
    meter = LoadMeter(Traffic())
    meter.read(0, 0, 0.0)
    meter.requests = 50
    assert meter.read(0, 0, 100.0).requests_per_second == pytest.approx(0.5)


def test_two_readings_at_once() -> None:
    meter = LoadMeter(Traffic())
    meter.read(0, 0, 1.0)
    meter.requests = 5
    assert meter.read(0, 0, 1.0).requests_per_second == 0.0


def test_bytes_a_second_are_those_of_all_connections() -> None:
    traffic = Traffic()
    meter = LoadMeter(traffic)
    meter.read(0, 0, 0.0)
    traffic.received, traffic.sent = 3000, 500
    load = meter.read(0, 0, 2.0)
    assert (load.received_per_second, load.sent_per_second) == (1500.0, 250.0)
