"""Everything that touches disk, clock or screen: data, training, checkpoints, evaluation, plots, reports."""
