"""The command-line programs; none needs ROS."""
