import pickle

from psworker.errors import DataError, JobError


def test_a_data_error_says_where_and_what() -> None:
    error = DataError("train.csv", 17, '"abc" in column "age" is not a number; correct the row')
    assert str(error) == 'train.csv, line 17: "abc" in column "age" is not a number; correct the row'
    assert (error.path, error.line) == ("train.csv", 17)


def test_a_data_error_without_a_line() -> None:
    assert str(DataError("a.csv", None, "no such file")) == "a.csv: no such file"


def test_a_data_error_survives_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("a.csv", 3, "ragged")))
    assert (error.path, error.line, error.reason) == ("a.csv", 3, "ragged")


def test_a_job_error_is_a_value_error() -> None:
    assert issubclass(JobError, ValueError)
    assert not issubclass(DataError, ValueError)


def test_a_data_error_may_name_the_column_and_the_row_and_keeps_them() -> None:
    error = DataError("a.parquet", None, "no value; fill it in", column="age", row=9)
    assert str(error) == 'a.parquet, row 9, column "age": no value; fill it in'
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.column, again.row) == (str(error), "age", 9)
