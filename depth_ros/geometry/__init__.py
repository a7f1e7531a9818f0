"""Pure functions on tensors: rigid motions, the pinhole camera, warping, two views, solvers, plane sweep."""
