"""What can be known to be wrong with a run before anything is started."""
