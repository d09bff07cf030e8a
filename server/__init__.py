"""The service around `tocom_core`: settings, batching, load control, HTTP and metrics."""
