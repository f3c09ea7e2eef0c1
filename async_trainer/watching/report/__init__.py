"""What ``async-trainer report`` makes of a run's folder: one HTML page."""
