"""Arrays in, arrays out: each engine owns its state, device and model, and knows nothing of ROS."""
