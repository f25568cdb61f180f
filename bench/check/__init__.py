"""Whether a configuration does what it says."""
