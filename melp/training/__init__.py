"""Parts of the loop in `train.py`: the run folder and its checkpoints, health, speed, trackers and pictures.

None of it knows what a stage learns.
"""
