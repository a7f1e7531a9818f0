"""The nodes, and the only place that imports ROS."""
