"""Jobs for SLURM, written from the config of a run; and what SLURM is asked before one is queued."""
