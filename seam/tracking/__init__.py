"""MLflow: runs in a store, their view, and live logging to a server."""
