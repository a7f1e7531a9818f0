"""Writes TUM folders; see tum.py for the layout."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np

from depth_ros.learning.sequences import ColourEvent, DepthEvent, Event, Mount, PoseEvent, Scan, Sequence
from depth_ros.learning.trajectory import format_stamp
from depth_ros.learning.tum import DEPTH_SCALE, SCAN_COLUMNS

_LOG = logging.getLogger(__name__)
_MAX_RAW = 65535
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 2]
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


class TumWriter:
    """Fills a new folder with the events of a sequence, given in the order of their stamps; the text files are written by close()."""

    def __init__(self, folder: Path, K: np.ndarray, size: tuple[int, int], frame_id: str, mount: Mount | None = None, lossless: bool = True) -> None:
        """K (3, 3) and size (width, height) [px]; `lossless`: colour as PNG, else as JPEG of high quality."""
        self.folder = folder
        self._colour = ('.png', _PNG) if lossless else ('.jpg', _JPEG)
        self._lines: dict[str, list[str]] = {'rgb.txt': ['# timestamp filename'], 'depth.txt': ['# timestamp filename'],
                                             'groundtruth.txt': ['# timestamp tx ty tz qx qy qz qw (camera to world)'],
                                             'scan.txt': ['# ' + ' '.join(('timestamp', *SCAN_COLUMNS, 'ranges...'))]}
        self._beyond = 0
        for name in ('rgb', 'depth'):
            (folder / name).mkdir(parents=True)
        values = {'fx': K[0, 0], 'fy': K[1, 1], 'cx': K[0, 2], 'cy': K[1, 2], 'width': size[0], 'height': size[1], 'depth_scale': DEPTH_SCALE}
        _write(folder / 'calibration.yaml', [f'{key}: {_number(value)}' for key, value in values.items()] + [f"frame_id: '{frame_id}'"])
        if mount is not None:
            _write(folder / 'laser.yaml', [f"frame_id: '{mount.frame_id}'", '# T_cam_laser: x y z [m], quaternion x y z w',
                                           f'translation: [{", ".join(_number(v) for v in mount.row[:3])}]',
                                           f'quaternion: [{", ".join(_number(v) for v in mount.row[3:])}]'])

    @classmethod
    def like(cls, folder: Path, sequence: Sequence) -> TumWriter:
        """A writer for a copy of a sequence."""
        return cls(folder, sequence.K, sequence.size, sequence.frame_id, sequence.mount)

    def add(self, event: Event) -> None:
        """Write an image at once, keep a line of the rest."""
        if isinstance(event, PoseEvent):
            self._line('groundtruth.txt', event.stamp, ' '.join(_number(v) for v in event.row))
        elif isinstance(event, DepthEvent):
            self._image('depth', event.stamp, '.png', self._raw(event.depth), _PNG)
        elif isinstance(event, ColourEvent):
            self._image('rgb', event.stamp, self._colour[0], cv2.cvtColor(event.image, cv2.COLOR_RGB2BGR), self._colour[1])
        else:
            self._line('scan.txt', event.stamp, _scan_words(event.scan))

    def close(self) -> None:
        """Write the text files; those of what never came are left out."""
        for name, lines in self._lines.items():
            if len(lines) > 1 or name == 'rgb.txt':
                _write(self.folder / name, lines)
        if self._beyond:
            _LOG.warning('%d depth values beyond %.2f m do not fit into 16 bits and became invalid', self._beyond, _MAX_RAW / DEPTH_SCALE)

    def _line(self, name: str, stamp: int, text: str) -> None:
        self._lines[name].append(f'{format_stamp(stamp)} {text}')

    def _image(self, kind: str, stamp: int, suffix: str, image: np.ndarray, options: list[int]) -> None:
        name = f'{kind}/{format_stamp(stamp)}{suffix}'
        encoded, data = cv2.imencode(suffix, image, options)
        if not encoded:
            raise OSError(f'{self.folder / name}: cannot be encoded')
        (self.folder / name).write_bytes(data.tobytes())
        self._line(f'{kind}.txt', stamp, name)

    def _raw(self, depth: np.ndarray) -> np.ndarray:
        """16-bit integers of depth (H, W) [m]; 0 where it is invalid or too far."""
        raw = np.rint(np.nan_to_num(depth, nan=0.0) * np.float32(DEPTH_SCALE))
        self._beyond += int((raw > _MAX_RAW).sum())
        return np.where(raw > _MAX_RAW, 0, raw).astype(np.uint16)


def _scan_words(scan: Scan) -> str:
    fields = [np.float32(getattr(scan, name)) for name in SCAN_COLUMNS]
    return ' '.join(str(v) for v in (*fields, *scan.ranges.astype(np.float32)))      # numpy writes the shortest text that reads back the same


def _number(value: float) -> str:
    """The shortest decimal text that reads back as the same double."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text('\n'.join([*lines, '']))
