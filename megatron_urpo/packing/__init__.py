"""From published files to a packed prompt store, and a look into one."""
