import json

import numpy as np

from psctl.predictions import Predicted, Tally, header, in_order, text_of
from psworker.errors import DataError
from psworker.unlabelled import Lost

LOST = Lost("number", DataError("new.csv", 3, "is not a number", column="a"))
CLASSES = ("no", "yes")


def test_rows_are_in_the_order_of_the_input() -> None:
    rows = in_order(np.array([1, 0]), np.array([[0.2, 0.8], [0.7, 0.3]]), {0: LOST, 2: LOST}, CLASSES)
    assert rows == [
        Predicted(None, (), LOST),
        Predicted("yes", [0.2, 0.8]),
        Predicted(None, (), LOST),
        Predicted("no", [0.7, 0.3]),
    ]


def test_numbers_have_as_many_digits_as_they_are_worth() -> None:
    (row,) = in_order(np.array([0.1], np.float32), None, {}, ())
    assert text_of("text", [row], ()) == "0.1\n"
    assert text_of("json", [row], ()) == '{"prediction": 0.1}\n'


def test_what_json_has_no_number_for_is_null() -> None:
    (row,) = in_order(np.array([np.nan], np.float32), None, {}, ())
    assert text_of("json", [row], ()) == '{"prediction": null}\n'


def test_names_are_quoted_where_csv_needs_it() -> None:
    assert header("csv", ["a,b", "c"]) == 'prediction,"p(a,b)",p(c)\n'
    assert text_of("csv", [Predicted("a,b", [0.5, 0.5])], ["a,b", "c"]) == '"a,b",0.5,0.5\n'
    assert header("text", CLASSES) == header("json", CLASSES) == ""


def test_nothing_is_said_where_all_rows_are_predicted() -> None:
    tally = Tally()
    tally.add([Predicted(1.0)])
    assert tally.text("text") == tally.text("json") == ""


def test_the_first_of_each_reason_is_told_and_all_are_counted() -> None:
    tally = Tally()
    other = Lost("fields", DataError("new.csv", 9, "the row has 1 values"))
    tally.add([Predicted(None, (), LOST), Predicted(1.0)])
    tally.add([Predicted(None, (), other), Predicted(None, (), Lost("number", other.error))])
    assert tally.text("text").splitlines() == [
        "psctl predict: 3 of 4 rows have no prediction: 1 of fields, 2 of number",
        "  the first of fields: new.csv, line 9: the row has 1 values",
        '  the first of number: new.csv, line 3, column "a": is not a number',
    ]
    assert json.loads(tally.text("json"))["reasons"]["number"]["rows"] == 2
