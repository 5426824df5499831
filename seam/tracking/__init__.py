"""MLflow: runs in a store, and live logging to a server."""
