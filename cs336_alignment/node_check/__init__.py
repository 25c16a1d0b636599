"""Proves a machine before the first job: `cs336-check-node`, or `python scripts/check_node.py`.

outcome.py    what a check is, and what comes of it
machine.py    looks without computing: driver and libraries, GPUs and their links, the output folder's disk
devices.py    the GPUs (or CPU processes) add numbers up; attention and the output head against plain arithmetic
learning.py   an engine that is given new weights twice; GRPO steps with a checkpoint
launch.py     a check in processes of its own, one a GPU, with a time limit; worker.py is what they run
command.py    the list of checks, the command, its table and its JSON
"""
