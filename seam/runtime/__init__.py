"""The process that work runs in: cores and threads, the device, the meter of what it costs, progress bars."""
