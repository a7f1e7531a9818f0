"""`python -m ros2cli`, the same as `ros2`."""
import sys

from .cli import main

sys.exit(main())
