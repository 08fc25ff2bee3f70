import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from plaudit.cli.interrupts import Terminated, exit_code, sigterm_as_interrupt


def test_sigterm_interrupts_as_ctrl_c_does_and_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as interrupt, sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(interrupt.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_signal_has_its_exit_code():
    assert (exit_code(KeyboardInterrupt()), exit_code(Terminated())) == (130, 143)


def test_in_another_thread_no_handler_is_set():
    before = signal.getsignal(signal.SIGTERM)

    def handler():
        with sigterm_as_interrupt():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() is before
