"""Interruptions: one line on how to go on, the exit code of the signal, and gone in time whatever is under way."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxmargin.lab import command_line
from jaxmargin.lab.interruptions import SAID, Stopped, stoppable

# A job that is in one call of compiled code for ever, or that takes its interruption for no reason to end.
JOB = """
import signal, sys, time, jax
from jaxmargin.lab import command_line, interruptions

def compiled():
    print("under way", flush=True)
    for_ever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x > -9.0, jax.numpy.sin, x))
    print(for_ever(1.0))

def stubborn():
    print("under way", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("heard", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background has not
interruptions._GRACE_SECONDS = float(sys.argv[2])
sys.exit(command_line.exit_code(globals()[sys.argv[1]]))
"""


@contextlib.contextmanager
def started(job, grace):
    """The job, under way; gone after the block whatever happened."""
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", JOB, job, str(grace)], env=os.environ | CPU, **piped) as process:
        try:
            assert process.stdout.readline() == "under way\n"
            time.sleep(2.0)  # until it is compiled
            yield process
        finally:
            process.kill()


CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def heard():
    """This process hears of the keyboard, though it may have been started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_job_with_one_line_and_its_exit_code(number, code, capsys, heard):
    before = signal.getsignal(number)
    kept = []

    def job():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            kept.append("saved")
            raise

    assert command_line.exit_code(job) == code and kept == ["saved"]
    assert capsys.readouterr().err == f"{SAID}\n"
    assert signal.getsignal(number) is before and signal.set_wakeup_fd(-1) == -1


def test_a_job_that_ends_by_itself_leaves_nothing_behind():
    threads = threading.active_count()
    for _ in range(3):
        assert command_line.exit_code(lambda: None, minutes=1.0) == 0
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_outside_of_the_main_thread_nothing_is_done():
    said = []
    thread = threading.Thread(target=lambda: said.append(command_line.exit_code(lambda: None)))
    thread.start()
    thread.join()
    assert said == [0]


def test_what_was_started_to_ignore_the_keyboard_still_does(capsys):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert command_line.exit_code(lambda: signal.raise_signal(signal.SIGINT)) == 0
        assert command_line.exit_code(lambda: time.sleep(60), minutes=0.001) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_blocks_that_are_not_commands_get_an_exception():
    with pytest.raises(Stopped) as stop, stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.exit_code == 143 and isinstance(stop.value, KeyboardInterrupt)


@pytest.mark.slow
def test_compiled_code_that_does_not_end_is_left_when_the_time_is_over():
    with started("compiled", 0.5) as process:
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.strip() == SAID
    assert time.monotonic() - begun < 10


@pytest.mark.slow
@pytest.mark.parametrize("job", ["compiled", "stubborn"])
def test_a_second_signal_ends_it_at_once_and_without_a_traceback(job):
    with started(job, 600) as process:
        process.send_signal(signal.SIGINT)
        if job == "stubborn":
            assert process.stdout.readline() == "heard\n"
        time.sleep(0.5)
        assert process.poll() is None
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == SAID
    assert time.monotonic() - begun < 5
