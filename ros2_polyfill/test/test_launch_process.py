"""What launch promises about processes: their output, their end, and Ctrl-C."""
from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from launch.actions import ExecuteProcess, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessIO, OnProcessStart

DEADLINE = 60.0      # [s] generous: the tests wait for a process, not for a time


def python(source):
    return [sys.executable, '-c', source]


def test_lines_carry_the_name_of_their_process(run_launch, capfd):
    process = ExecuteProcess(cmd=python('print("one\\ntwo"); print("three", end="")'), name='teller', output='screen')
    assert run_launch(process) == 0
    shown = ''.join(capfd.readouterr())
    name = process.process_details['name']
    assert re.fullmatch(r'teller-\d+', name)
    for line in ('one', 'two', 'three'):
        assert f'[{name}] {line}\n' in shown
    assert f"[INFO] [{name}]: process started with pid [{process.process_details['pid']}]" in shown
    assert f'[INFO] [{name}]: process has finished cleanly' in shown


def test_log_shows_errors_alone(run_launch, capfd):
    assert run_launch(ExecuteProcess(cmd=python('import sys; print("quiet"); print("loud", file=sys.stderr)'), output='log')) == 0
    shown = ''.join(capfd.readouterr())
    assert '] loud' in shown and '] quiet' not in shown


def test_a_death_is_reported_and_does_not_fail_the_launch(run_launch, capfd):
    process = ExecuteProcess(cmd=python('import os; os._exit(7)'))
    assert run_launch(process) == 0
    assert process.return_code == 7
    assert re.search(r'\[ERROR\] \[.*\]: process has died \[pid \d+, exit code 7', ''.join(capfd.readouterr()))


def test_a_command_that_does_not_exist_is_reported(run_launch, capfd):
    run_launch(ExecuteProcess(cmd=['/no/such/program']))
    assert '/no/such/program' in ''.join(capfd.readouterr())


def test_output_of_a_terminal_is_a_terminal_s(run_launch):
    ask = python('import sys; print(sys.stdout.isatty())')
    plain, terminal = ExecuteProcess(cmd=ask, cached_output=True), ExecuteProcess(cmd=ask, cached_output=True, emulate_tty=True)
    run_launch(plain, terminal)
    assert plain.get_stdout().split() == ['False'] and terminal.get_stdout().split() == ['True']


def test_a_character_may_arrive_in_two_halves(run_launch, capfd):
    source = 'import os, sys, time; os.write(1, b"gr\\xc3"); time.sleep(0.2); os.write(1, b"\\xbcn\\n")'
    process = ExecuteProcess(cmd=python(source), cached_output=True, output='screen')
    assert run_launch(process) == 0
    assert process.get_stdout() == 'grün\n' and '] grün\n' in ''.join(capfd.readouterr())


def test_a_process_is_respawned(run_launch, tmp_path):
    source = f'import pathlib; p = pathlib.Path({str(tmp_path / "count")!r}); p.write_text(p.read_text() + "x" if p.exists() else "x")'
    assert run_launch(ExecuteProcess(cmd=python(source), respawn=True, respawn_delay=0.05, respawn_max_retries=2)) == 0
    assert (tmp_path / 'count').read_text() == 'xxx'


STUBBORN = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); {more}print("ready", flush=True); time.sleep(300)'


@pytest.mark.parametrize('more, last', [('', signal.SIGTERM), ('signal.signal(signal.SIGTERM, signal.SIG_IGN); ', signal.SIGKILL)])
def test_a_process_that_ignores_signals_is_ended_all_the_same(run_launch, more, last):
    stubborn = ExecuteProcess(cmd=python(STUBBORN.format(more=more)), sigterm_timeout='0.3', sigkill_timeout='0.3')
    end = RegisterEventHandler(OnProcessIO(target_action=stubborn, on_stdout=lambda event: Shutdown(reason='test')))
    assert run_launch(end, stubborn) == 0
    assert stubborn.return_code == -last


def test_the_end_of_a_launch_interrupts_its_processes(run_launch):
    source = 'import time\ntry:\n    print("ready", flush=True)\n    time.sleep(300)\nexcept KeyboardInterrupt:\n    raise SystemExit(5)'
    polite = ExecuteProcess(cmd=python(source))
    assert run_launch(RegisterEventHandler(OnProcessIO(target_action=polite, on_stdout=lambda event: Shutdown(reason='test'))), polite) == 0
    assert polite.return_code == 5


# Ctrl-C, from outside

LAUNCH_FILE = '''
import sys
from launch import LaunchDescription
from launch.actions import ExecuteProcess

SOURCE = """
import os, sys, time
try:
    print("child", os.getpid(), flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def generate_launch_description():
    return LaunchDescription([ExecuteProcess(cmd=[sys.executable, "-c", SOURCE], output="screen") for _ in range(2)])
'''


@pytest.fixture
def launch_file(tmp_path):
    path = tmp_path / 'sleepers.launch.py'
    path.write_text(LAUNCH_FILE)
    return path


class OnTerminal:
    """A command on a pseudo-terminal of its own, as its foreground job."""

    def __init__(self, command, log_dir):
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ['ROS_LOG_DIR'] = str(log_dir)
            os.execvp(command[0], command)
        self.text = ''

    def read_until(self, condition):
        deadline = time.monotonic() + DEADLINE
        while not condition(self.text):
            assert time.monotonic() < deadline, self.text
            try:
                self.text += os.read(self._terminal, 4096).decode()
            except OSError:      # the last process has closed it
                break

    def type(self, keys):
        os.write(self._terminal, keys)

    def wait(self):
        """Exit status, once everything it wrote has been read."""
        self.read_until(lambda text: False)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


def children(text):
    return [int(pid) for pid in re.findall(r'child (\d+)', text)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_on_a_terminal_ends_a_launch_cleanly(ros2, launch_file, tmp_path):
    job = OnTerminal([*ros2, 'launch', str(launch_file)], tmp_path)
    job.read_until(lambda text: len(children(text)) == 2)
    job.type(b'\x03')
    assert job.wait() == 0, job.text
    assert job.text.count('interrupted') >= 2, job.text
    assert not any(alive(pid) for pid in children(job.text))


def _start_ignoring_interrupts(command, tmp_path):
    """As a script's `command &` does."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'ROS_LOG_DIR': str(tmp_path)},
                            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))


def test_an_interrupt_of_the_launcher_alone_ends_its_children_too(ros2, launch_file, tmp_path):
    job = _start_ignoring_interrupts([*ros2, 'launch', str(launch_file), '--noninteractive'], tmp_path)
    text = ''
    while len(children(text)) < 2:
        text += job.stdout.readline()
    job.send_signal(signal.SIGINT)
    rest, _ = job.communicate(timeout=DEADLINE)
    assert job.returncode == 0, text + rest
    assert rest.count('interrupted') >= 2, text + rest
    assert not any(alive(pid) for pid in children(text))


def test_an_interrupt_before_the_first_process_is_up_is_not_lost(run_launch):
    early = ExecuteProcess(cmd=python('import time; time.sleep(300)'))
    raise_it = RegisterEventHandler(OnProcessStart(target_action=early, on_start=lambda event, context: os.kill(os.getpid(), signal.SIGINT)))
    assert run_launch(raise_it, early) == 0
    assert early.return_code is not None


def test_handlers_of_signals_are_given_back(run_launch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_launch(ExecuteProcess(cmd=python('pass')))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
