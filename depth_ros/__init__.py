"""Live dense depth and camera tracking for robots with one camera."""
