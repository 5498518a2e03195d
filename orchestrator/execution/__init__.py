"""The driver, the queue, the lanes: where stages meet Ray."""
