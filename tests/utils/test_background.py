"""What works beside the program: one piece at a time, to its end, and no error is lost."""

from threading import Event

import pytest

from ldm.utils.background import Background
from ldm.utils.errors import UserError


def fail():
    raise UserError("the disk is full")


def test_the_next_piece_begins_after_the_last_and_all_are_done_at_the_end():
    done, gate = [], Event()
    with Background() as background:
        background.start(lambda: (gate.wait(60), done.append(1)))
        background.check()  # it does not wait
        assert done == []
        gate.set()
        background.start(lambda: done.append(2 if done == [1] else "too early"))
    assert done == [1, 2]


@pytest.mark.parametrize("ask", ["wait", "check", "start"])
def test_an_error_is_raised_once_where_one_asks(ask):
    background = Background()
    background.start(fail)
    while not background._at_work.done():
        pass
    with pytest.raises(UserError, match="the disk is full"):
        background.start(lambda: None) if ask == "start" else getattr(background, ask)()
    background.check(), background.wait()


def test_an_error_at_the_end_is_raised_and_beside_another_it_is_said(capsys):
    with pytest.raises(UserError, match="full"), Background() as background:
        background.start(fail)
    with pytest.raises(ValueError, match="another"), Background() as background:
        background.start(fail)
        raise ValueError("another")
    assert capsys.readouterr().out == "warning: the disk is full\n"


def test_an_interrupt_waits_for_nothing():
    gate = Event()
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.start(lambda: gate.wait(600))
        raise KeyboardInterrupt
    gate.set()
