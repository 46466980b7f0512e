"""Databases that are caches."""

from __future__ import annotations

import os

import pytest

from sandboxsdk.errors import Corrupt, HostRefused
from sandboxsdk.host import Database


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "odd name?#%41.sqlite")


def test_rows_come_back(path):
    """What was put in is there, also when it is opened again to be read."""
    database = Database(path)
    database.query("CREATE TABLE t (a, b)")
    database.run_for_each("INSERT INTO t VALUES (?, ?)", [(1, b"x"), (2, "y")])
    assert database.query("SELECT * FROM t ORDER BY a") == [(1, b"x"), (2, "y")]
    database.close()
    assert os.path.exists(path)
    database = Database(path, read_only=True)
    assert database.query("SELECT count(*) FROM t") == [(2,)]
    with pytest.raises(HostRefused):
        database.query("DELETE FROM t")
    database.close()


def test_a_transaction_is_all_or_nothing():
    """An exception in the block takes everything back."""
    database = Database(None)
    database.query("CREATE TABLE t (a)")
    with pytest.raises(ZeroDivisionError), database.transaction():
        database.query("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError
    with database.transaction():
        database.query("INSERT INTO t VALUES (2)")
    assert database.query("SELECT * FROM t") == [(2,)]
    database.close()


def test_what_is_no_database_is_corrupt(path):
    """Another file, wrong statements and large values have one typed error."""
    with open(path, "wb") as file:
        file.write(b"no database" * 1000)
    with pytest.raises(Corrupt):
        Database(path).query("SELECT * FROM sqlite_master")
    database = Database(None)
    with pytest.raises(Corrupt):
        database.query("SELECT * FROM nothing")
    with pytest.raises(Corrupt):
        database.query("SELECT zeroblob(100000000)")
    with pytest.raises(Corrupt):
        database.query("SELECT ?", (1 << 70,))
    database.close()


def test_what_cannot_be_opened_is_refused(path):
    """A directory, or a place where there is none, is refused."""
    with pytest.raises(HostRefused):
        Database(os.path.join(path, "below"))
    with pytest.raises(HostRefused):
        Database(path, read_only=True)


def test_others_are_waited_for_and_not_forever(path):
    """Who finds it in use longer than it wants to wait is refused."""
    first, second = Database(path), Database(path, wait=0.01)
    first.query("CREATE TABLE t (a)")
    with first.transaction():
        with pytest.raises(HostRefused), second.transaction():
            pass
    with second.transaction():
        second.query("INSERT INTO t VALUES (1)")
    first.close()
    second.close()


def test_a_child_leaves_it_alone():
    """A forked child neither uses nor closes the connection."""
    database = Database(None)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            database.query("SELECT 1")
        except AssertionError:
            database.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert database.query("SELECT 1") == [(1,)]
    database.close()
