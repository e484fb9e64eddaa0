"""Many jobs on a few threads: batch, scheduler, admission control, checkpoint."""
