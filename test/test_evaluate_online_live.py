"""`evaluate online --live`: what the graph publishes, scored against the sensor depth of the same stamp."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import UInt8MultiArray

from depth_ros.apps import evaluate, online_live
from depth_ros.apps.online_live import Recorded, Replay
from depth_ros.learning.tum import open_sequence
from depth_ros.ros import codecs, online_recording
from depth_ros.ros.managed_node import LATCHED_QOS
from wait_support import until

SIZE = 64, 48
PASSES = 2
CONFIG = Path(__file__).resolve().parents[1] / 'config/online_learning.yaml'


def recorded(sequence, share):
    """Two passes of which the first lacks two frames: the true depth, `share` of it by the frozen network."""
    def depth(index, factor):
        truth = sequence[index].resized(*SIZE)
        return (factor * np.where(truth.depth_valid, truth.depth, 0)).astype(np.float16)

    stamps = [int(s) for s in sequence.colour_stamps[:12]]
    depths = {name: [{s: depth(i, factor) for i, s in enumerate(stamps) if number or i not in (3, 4)} for number in range(PASSES)]
              for name, factor in (('learned', 1.0), ('frozen_scaled', share))}
    return Recorded(depths, b'', {})


def test_every_line_is_scored_in_metres_at_the_stamps_that_were_published(beginning):
    with open_sequence(beginning) as sequence:
        lines = online_live.lines_of(recorded(sequence, 1.25), sequence, sequence.ground_truth, '')
    assert set(lines) == {'learned', 'frozen_scaled', 'triangulated'} and all(len(passes) == PASSES for passes in lines.values())
    for passes in lines.values():
        assert all(list(scores) == list(range(12)) for scores in passes)
    for number, scores in enumerate(lines['learned']):
        assert {i for i, value in scores.items() if value is None} == (set() if number else {3, 4})
    sure = [i for i in range(12) if i not in (3, 4)]
    assert all(lines['learned'][0][i] < 1e-3 for i in sure)
    np.testing.assert_allclose([lines['frozen_scaled'][0][i] for i in sure], 0.25, atol=0.02)      # depth beyond the scored range is cut off


def test_a_graph_without_depth_is_told(beginning):
    with open_sequence(beginning) as sequence, pytest.raises(ValueError, match='published no depth'):
        online_live.lines_of(Recorded({'learned': [{}], 'frozen_scaled': [{}]}, b'', {}), sequence, sequence.ground_truth, '')


def test_a_recording_holds_what_was_heard_by_pass(world, tmp_path):
    node = world.add(online_recording.Recorder(context=world.context))
    depths, frozen = world.publisher(Image, 'global_local/depth/image'), world.publisher(Image, 'frozen/depth/image')
    infos, metrics, weights = world.publisher(CameraInfo, 'camera/rgb/camera_info'), world.publisher(DiagnosticArray, 'online_learning/metrics'), \
        world.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
    world.connected(depths, frozen, infos, metrics, weights)
    depth = np.linspace(0.5, 3.0, 12, dtype=np.float32).reshape(3, 4)
    for lap in range(1 + PASSES):       # the first is that of the network that does not learn
        for number, second in enumerate((5, 9)):
            header = codecs.make_header(second * 10 ** 9, 'camera')
            infos.publish(codecs.camera_info(np.eye(3), (4, 3), header))
            world.until(lambda: node.camera.last == second * 10 ** 9, 'the camera')
            depths.publish(codecs.depth_image(depth + lap, depth < 2.9, header))
            world.until(lambda: len(node.depths['learned']) == 2 * lap + number + 1, 'the depth image')
            if lap == 1 and not number:      # of its pass that network has but the last image, which comes late; what it gives after that is not asked for
                for late in (9, second):
                    frozen.publish(codecs.depth_image(depth, depth < 2.9, codecs.make_header(late * 10 ** 9, 'camera')))
                world.until(lambda: len(node.depths['frozen_scaled']) == 2, 'its depth images')
    state = DiagnosticArray(status=[DiagnosticStatus(values=[KeyValue(key='state', value='learning'), KeyValue(key='pairs', value='7')])])
    metrics.publish(state)
    weights.publish(UInt8MultiArray(data=[1, 2, 3]))
    world.until(lambda: node.told and node.weights and node.passes == PASSES, 'all that was told')
    online_recording.write(node, tmp_path / 'recording.npz', {'learner_seconds': 1.5, 'memory_mb': [3, 4]})
    found = online_live.read(tmp_path / 'recording.npz', PASSES)
    world.remove(node)
    assert [list(one) for one in found.depths['learned']] == [[5 * 10 ** 9, 9 * 10 ** 9]] * 2 and [list(one) for one in found.depths['frozen_scaled']] == [[9 * 10 ** 9]] * 2
    np.testing.assert_allclose(found.depths['learned'][1][5 * 10 ** 9], np.where(depth < 2.9, depth + 2, 0), rtol=1e-3)
    figures = online_live.figures_of(found, Replay('kitchen', 'published', '', 'row', 60, PASSES, 0.5, ()))
    assert found.weights == bytes([1, 2, 3]) and figures['observed'] == 7 and figures['states'] == {'learning': 1} and figures['withheld_after'] is None
    assert figures['published_by_pass'] == [2, 2] and figures['learner_seconds'] == 1.5


def test_a_domain_in_use_is_left_alone(world, monkeypatch):
    monkeypatch.setattr(online_recording.random, 'sample', lambda domains, _count: [world.domain, world.domain % 100 + 1])
    world.add(online_recording.Recorder(context=world.context))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert online_recording.free_domain() != world.domain
        other.bind(('', 7400 + 250 * (world.domain % 100 + 1)))
        with pytest.raises(OSError, match='in use'):
            online_recording.free_domain()


def test_what_does_not_heed_signals_is_ended_with_all_it_started(monkeypatch):
    monkeypatch.setattr(online_recording, '_PATIENCE', 0.2)
    words = 'import signal, subprocess, sys, time; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]; ' \
            'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]); print(child.pid, flush=True); time.sleep(600)'
    with subprocess.Popen([sys.executable, '-c', words], start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        online_recording._end(process)
        assert process.returncode == -signal.SIGKILL and process.stdout.read() == ''        # which ends only when the child has let go of it


@pytest.mark.parametrize('number', (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
def test_who_is_told_to_end_ends_the_replay_first(number, tmp_path):
    (tmp_path / 'replay.py').write_text('import pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'
                                        'try:\n    pathlib.Path("begun").touch()\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pathlib.Path("ended").touch()\n')
    words = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path; from depth_ros.apps import online_live; ' \
            'from depth_ros.engines.online_settings import OnlineLearnerConfig; online_live._PROGRAM = "replay"; ' \
            'online_live.record(online_live.Replay("", "published", "", "row", 0, 1, 1.0, ()), OnlineLearnerConfig(), 0, Path("."))'
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
    with subprocess.Popen([sys.executable, '-c', words], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        until((tmp_path / 'begun').exists, 'the replay to begin')
        process.send_signal(number)
        assert process.wait(30.0) != 0 and (tmp_path / 'ended').exists()


def test_the_network_beside_it_gets_the_parameters_of_the_other_and_is_waited_for():
    recording = online_recording.Recording('kitchen', 1, 0.5, 'published', '', {'global_local': {'max_depth': 7.0}, 'player': {'scan_beams': 1}}, (), '.')
    made = online_recording.parameters_of(recording)
    own = yaml.safe_load(CONFIG.read_text())
    assert made['frozen'] == {**own['/**/global_local']['ros__parameters'], 'max_depth': 7.0, 'variant': 'published', 'weights': '',
                              'use_sim_time': True}
    assert made['player'] == {'scan_beams': 1, 'wait_for_listeners': own['/**/player']['ros__parameters']['wait_for_listeners'] + 1}


def test_it_leaves_the_figures_and_the_curve_of_a_replay(world, beginning, kitchen, tmp_path):
    assert evaluate.main(['online', '--live', '--sequence', str(beginning), '--poses', str(kitchen / 'groundtruth_refined.txt'), '--variant', 'published', '--passes', '1',
                          '--replay-rate', '0.25', '--hold-out-last', '40', '--dense', '--rehearse', '0', '--synthetic', '0', '--out', str(tmp_path / 'out')]) == 0
    figures = json.loads((tmp_path / 'out/metrics.json').read_text())
    assert {'abs_rel_frozen_scaled', 'abs_rel_triangulated', 'abs_rel_dense', 'abs_rel_learned', 'updates', 'rollbacks'} <= set(figures)
    assert figures['observed'] > 0      # it forgot those of the pass before and went on
    assert figures['held_out'] and min(figures['held_out']) >= len(open_sequence(beginning)) - 40
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {'metrics.json', 'online.png', 'learned.safetensors'}


@pytest.mark.parametrize('words, reason', [(['--fault', 'nan'], 'no --fault'), (['--domain', '233'], 'expected 0 to 232'), (['--size', 'large'], "got 'large'")])
def test_what_the_live_graph_cannot_do_is_refused(words, reason, beginning, capsys):
    assert evaluate.main(['online', '--live', '--sequence', str(beginning), *words]) == 1
    assert reason in capsys.readouterr().err
